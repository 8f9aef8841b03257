-- How polls are made beyond what nearly all projects need: columns of projects that have a default.
-- The CHECK constraints hold the rules of cluster/http_options.py for rows written directly in SQL.  Files are on the
-- workers' host.

ALTER TABLE projects
    ADD COLUMN verify_tls         boolean NOT NULL DEFAULT true,
    ADD COLUMN ca_file            text CHECK (ca_file ~ '^/[^[:cntrl:]]*$' AND length(ca_file) <= 4096),
    ADD COLUMN client_cert_file   text CHECK (client_cert_file ~ '^/[^[:cntrl:]]*$' AND length(client_cert_file) <= 4096),
    ADD COLUMN client_key_file    text CHECK (client_key_file ~ '^/[^[:cntrl:]]*$' AND length(client_key_file) <= 4096),
    ADD COLUMN server_name        text CHECK (length(server_name) <= 253 AND server_name ~
        '^[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*$'),
    ADD COLUMN ip_version         smallint CHECK (ip_version IN (4, 6)),
    ADD COLUMN connection_reuse   text NOT NULL DEFAULT 'auto' CHECK (connection_reuse IN ('auto', 'never')),
    ADD COLUMN body_limit_bytes   int CHECK (body_limit_bytes BETWEEN 1 AND 1073741824),
    ADD COLUMN connect_timeout_ms int CHECK (connect_timeout_ms BETWEEN 1 AND 600000),
    ADD COLUMN user_agent         text CHECK (user_agent ~ '^[^[:cntrl:]]+$' AND length(user_agent) <= 1000),
    ADD COLUMN basic_auth         text CHECK (basic_auth ~ '^[^[:cntrl:]]*:[^[:cntrl:]]*$' AND length(basic_auth) <= 4096),
    ADD COLUMN bearer_token       text CHECK (bearer_token ~ '^[!-~]+$' AND length(bearer_token) <= 8192),
    ADD COLUMN proxy              text CHECK (length(proxy) <= 4096 AND proxy ~*
        '^http://([^[:space:][:cntrl:]/?#]*@)?([a-z0-9_.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?/?$'),
    -- An option that could have no effect is a mistake.
    ADD CONSTRAINT projects_ca_file_is_used CHECK (ca_file IS NULL OR verify_tls),
    ADD CONSTRAINT projects_client_key_has_certificate CHECK (client_key_file IS NULL OR client_cert_file IS NOT NULL),
    ADD CONSTRAINT projects_tls_options_need_https
        CHECK (url ~* '^https:' OR (client_cert_file IS NULL AND server_name IS NULL)),
    -- One Authorization and one User-Agent: from an option, a header or the URL.
    ADD CONSTRAINT projects_one_authorization CHECK (
        num_nonnulls(basic_auth, bearer_token) = 0
        OR (num_nonnulls(basic_auth, bearer_token) = 1
            AND url !~ '^[^/?#]*//[^/?#]*@'
            AND jsonb_path_exists(headers, 'strict $.keyvalue() ? (@.key like_regex "^authorization$" flag "i")',
                                  '{}', true) IS NOT TRUE)),
    ADD CONSTRAINT projects_one_user_agent CHECK (
        user_agent IS NULL
        OR jsonb_path_exists(headers, 'strict $.keyvalue() ? (@.key like_regex "^user-agent$" flag "i")',
                             '{}', true) IS NOT TRUE);
