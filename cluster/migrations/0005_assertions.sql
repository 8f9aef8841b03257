-- What a project asserts of its answers, as a JSON list; the rules of its elements are those of cluster/assertions.py,
-- which SQL can't say: a row that breaks them is not polled, and the coordinator says so.
ALTER TABLE projects ADD COLUMN assertions jsonb
    CONSTRAINT projects_assertions_list CHECK (jsonb_typeof(assertions) IN ('array', 'null'));
