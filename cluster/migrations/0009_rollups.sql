-- History: what the polls of a project's minute, hour and day said, kept longer than the polls themselves.  Kept
-- by the writer (writer/rollups.py), from poll_results; read by cluster/history.py.  `at` is the begin, in UTC.

-- Response times are those of successful polls.
CREATE TABLE rollup_minutes (
    at         timestamptz NOT NULL,
    project_id bigint NOT NULL,
    polls      int NOT NULL,
    success    int NOT NULL,
    failure    int NOT NULL,
    unknown    int NOT NULL,
    sum_ms     double precision NOT NULL,
    min_ms     real,
    max_ms     real,
    sketch     numeric,                              -- counts by bucket of response time: see cluster/sketch.py
    PRIMARY KEY (at, project_id)                     -- one stretch of time of all projects lies together
);
-- by_minute: all polls of this hour are in rollup_minutes, too.  Not so for projects that are polled about once a
-- minute or less: their minutes are hardly more than their polls, and read from poll_results.
CREATE TABLE rollup_hours (LIKE rollup_minutes, by_minute boolean NOT NULL, PRIMARY KEY (at, project_id))
    WITH (fillfactor = 80);
CREATE TABLE rollup_days (LIKE rollup_minutes, PRIMARY KEY (at, project_id)) WITH (fillfactor = 80);
-- Six hours, and weeks from Monday, so that a look at many projects has less to add up; only those that are over.
CREATE TABLE rollup_quarters (LIKE rollup_minutes, PRIMARY KEY (at, project_id));
CREATE TABLE rollup_weeks (LIKE rollup_minutes, PRIMARY KEY (at, project_id));

-- What one value adds to a sketch.
CREATE TABLE rollup_weights (bucket int PRIMARY KEY, weight numeric NOT NULL);
INSERT INTO rollup_weights SELECT n, ('1' || repeat('0', 8 * n))::numeric FROM generate_series(0, 499) n;

-- One row.  Polls scheduled before rolled_to are in rollup_hours and rollup_days; while they are brought up to
-- claimed_to, that holds for claimed_to with projects before next_id.  A flush that stores polls of before claimed_to
-- says so in rollup_late.
CREATE TABLE rollup_progress (
    one               boolean PRIMARY KEY DEFAULT true CHECK (one),
    rolled_to         timestamptz NOT NULL,
    claimed_to        timestamptz NOT NULL,
    next_id           bigint,                        -- NULL: no pass is under way
    minutes_kept_from timestamptz NOT NULL,          -- before it rollup_minutes may have been dropped, and so on
    hours_kept_from   timestamptz NOT NULL,
    days_kept_from    timestamptz NOT NULL,
    updated_at        timestamptz NOT NULL DEFAULT now(),
    CHECK (rolled_to <= claimed_to AND (next_id IS NULL) = (rolled_to = claimed_to))
);
INSERT INTO rollup_progress
    (rolled_to, claimed_to, minutes_kept_from, hours_kept_from, days_kept_from)
    SELECT hour, hour, '-infinity', '-infinity', '-infinity' FROM date_trunc('hour', now(), 'UTC') AS hour;

-- How far rollup_quarters and rollup_weeks are made: what ends by summed_to, and what begins there of projects before
-- next_id.
CREATE TABLE rollup_sums (
    name      text PRIMARY KEY,
    summed_to timestamptz NOT NULL,
    next_id   bigint
);
INSERT INTO rollup_sums
    SELECT name, date_trunc('week', coalesce(to_date(first, 'YYYYMMDD')::timestamp AT TIME ZONE 'UTC', now()), 'UTC'), NULL
    FROM (VALUES ('rollup_quarters'), ('rollup_weeks')) sums (name), (
        SELECT min(right(relname, 8)) AS first FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid
        WHERE inhparent = 'poll_results'::regclass AND relname ~ '^poll_results_\d{8}$'
    ) partitions;

-- Polls that were stored when their time had been rolled up: these hours are made anew from poll_results.
CREATE TABLE rollup_late (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    since    timestamptz NOT NULL,                   -- whole hours of one day
    until    timestamptz NOT NULL,
    first_id bigint NOT NULL,                        -- projects; one, or all in between
    last_id  bigint NOT NULL,
    noted_at timestamptz NOT NULL DEFAULT now(),
    CHECK (since < until AND first_id <= last_id)
);

-- What was stored before there were rollups is made up for in the background.
INSERT INTO rollup_late (since, until, first_id, last_id)
    SELECT day, least(day + interval '1 day', rolled_to), -9223372036854775808, 9223372036854775807
    FROM rollup_progress, (
        SELECT to_date(right(relname, 8), 'YYYYMMDD')::timestamp AT TIME ZONE 'UTC' AS day
        FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid
        WHERE inhparent = 'poll_results'::regclass AND relname ~ '^poll_results_\d{8}$'
    ) days
    WHERE day < rolled_to
    ORDER BY day;
