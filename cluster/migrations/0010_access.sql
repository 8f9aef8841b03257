-- Who may use the coordinator's HTTP API and page away from loopback, and what was changed by whom.

-- A token is rp_<id>_<secret>.  The secret is 256 random bits, so a plain SHA-256 of it can't be searched backwards;
-- nothing else of it is kept.
CREATE TABLE api_tokens (
    id            text PRIMARY KEY CHECK (id ~ '^[0-9a-f]{12}$'),
    name          text NOT NULL CHECK (name ~ '^[A-Za-z0-9][A-Za-z0-9._@-]{0,62}$'),
    secret_sha256 bytea NOT NULL CHECK (octet_length(secret_sha256) = 32),
    scope         text NOT NULL CHECK (scope IN ('read', 'write', 'admin')),
    created_at    timestamptz NOT NULL DEFAULT now(),
    expires_at    timestamptz,                      -- NULL: never
    last_used_at  timestamptz,                      -- to within some minutes
    revoked_at    timestamptz
);
CREATE UNIQUE INDEX api_tokens_name ON api_tokens (name) WHERE revoked_at IS NULL;

-- A session says which generation of its user it belongs to.  A new password, a new scope and a user of the same name
-- who is added again get a number that no session has, so the sessions of before end.
CREATE SEQUENCE user_generations;
CREATE TABLE users (
    name                text PRIMARY KEY CHECK (name ~ '^[A-Za-z0-9][A-Za-z0-9._@-]{0,62}$'),
    password_hash       text NOT NULL,              -- argon2id, with its parameters and salt
    scope               text NOT NULL CHECK (scope IN ('read', 'write', 'admin')),
    generation          bigint NOT NULL DEFAULT nextval('user_generations'),
    created_at          timestamptz NOT NULL DEFAULT now(),
    password_changed_at timestamptz NOT NULL DEFAULT now(),
    last_login_at       timestamptz
);
ALTER SEQUENCE user_generations OWNED BY users.generation;

-- Written in the transaction of the change that it tells of.
CREATE TABLE audit_log (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor   text NOT NULL,                          -- token:NAME, user:NAME, local (loopback without login), cli:NAME
    action  text NOT NULL,                          -- such as project.update
    subject text NOT NULL,                          -- what was changed, such as project:12
    address text,                                   -- where the request came from
    details jsonb NOT NULL DEFAULT '{}'             -- never a secret
);
CREATE INDEX audit_log_actor ON audit_log (actor, id);
CREATE INDEX audit_log_at ON audit_log (at);
