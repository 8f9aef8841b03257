-- What polls on new connections saw of their endpoints: a row when it is seen for the first time.  Kept by the writer,
-- in the transaction that stores the results.

CREATE TABLE project_addresses (
    project_id bigint NOT NULL,
    address    text NOT NULL,
    first_seen timestamptz NOT NULL,                -- polled_at of the poll that saw it
    PRIMARY KEY (project_id, address)
);

-- Of certificates that were verified.
CREATE TABLE project_certificates (
    project_id bigint NOT NULL,
    expires_at timestamptz NOT NULL,
    first_seen timestamptz NOT NULL,
    PRIMARY KEY (project_id, expires_at)
);

CREATE FUNCTION ringpoll_projects_unseen() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM project_addresses a USING old_rows o WHERE a.project_id = o.id;
    DELETE FROM project_certificates c USING old_rows o WHERE c.project_id = o.id;
    RETURN NULL;
END $$;
CREATE TRIGGER ringpoll_projects_unseen AFTER DELETE ON projects REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION ringpoll_projects_unseen();
