-- A failure confirmed: a poll that fails is made again before it counts.

ALTER TABLE projects
    ADD COLUMN retries        int NOT NULL DEFAULT 0 CHECK (retries BETWEEN 0 AND 10),
    ADD COLUMN retry_delay_ms int NOT NULL DEFAULT 1000 CHECK (retry_delay_ms BETWEEN 1 AND 60000);

ALTER TABLE poll_results ADD COLUMN attempts smallint;  -- how many requests a project with retries took; NULL without
