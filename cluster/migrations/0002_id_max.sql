-- Ids of projects end where there is room for all that follow: one near the end of bigint would leave none for the next
-- row.  People may choose ids up to 2^62 (cluster/project.py); those that are given out after such a one are larger.
-- A row beyond the limit that is there already stays as it is, and can only be deleted; the sequence comes back from it.

ALTER TABLE projects ADD CONSTRAINT projects_id_max CHECK (id <= 6917529027641081856) NOT VALID;  -- 2^62 + 2^61

SELECT setval(pg_get_serial_sequence('projects', 'id'), greatest(max(id), 1))
FROM projects WHERE id <= 6917529027641081856
HAVING (SELECT last_value FROM pg_sequences
        WHERE format('%I.%I', schemaname, sequencename) = pg_get_serial_sequence('projects', 'id'))
       > 6917529027641081856;

-- The audit looks for the ticks of single projects.
CREATE INDEX ingest_reject_project ON ingest_reject (project_id);
