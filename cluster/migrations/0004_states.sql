-- Whether a project is up or down, and when that changed.  Kept by the writer, in the transaction that stores the
-- results that say so.

ALTER TABLE projects
    ADD COLUMN down_after int NOT NULL DEFAULT 1 CHECK (down_after BETWEEN 1 AND 1000),  -- failures in a row
    ADD COLUMN up_after   int NOT NULL DEFAULT 1 CHECK (up_after BETWEEN 1 AND 1000);    -- successes in a row

-- A project without a row has not had a failure since it was first polled.  A result with status unknown says nothing.
CREATE TABLE project_states (
    project_id  bigint PRIMARY KEY,
    state       text NOT NULL CHECK (state IN ('up', 'down')),
    since       timestamptz,                        -- scheduled_at of the first result of the run that made it so; NULL: from the beginning
    streak      int NOT NULL CHECK (streak >= 0),   -- results in a row, the newest ones, that speak against the state
    streak_from timestamptz,                        -- scheduled_at of the first of them
    CHECK ((streak = 0) = (streak_from IS NULL))
);
CREATE INDEX project_states_unsettled ON project_states (project_id) WHERE state = 'down' OR streak > 0;

CREATE FUNCTION ringpoll_projects_stateless() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM project_states s USING old_rows o WHERE s.project_id = o.id;
    RETURN NULL;
END $$;
CREATE TRIGGER ringpoll_projects_stateless AFTER DELETE ON projects REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION ringpoll_projects_stateless();

CREATE TABLE state_changes (
    project_id    bigint NOT NULL,
    changed_at    timestamptz NOT NULL,             -- scheduled_at of the result that decided
    state         text NOT NULL CHECK (state IN ('up', 'down')),
    began_at      timestamptz NOT NULL,             -- scheduled_at of the first result of its run
    polls         int NOT NULL,                     -- results in that run: down_after or up_after
    status_code   smallint,                         -- of the result that decided, as the next two
    error_code    text,
    error_message text,
    PRIMARY KEY (project_id, changed_at)
);
CREATE INDEX state_changes_changed_at ON state_changes (changed_at);
