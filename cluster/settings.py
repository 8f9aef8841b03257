"""What a cluster is configured with, as one validated value; every process of a cluster receives the same.

``load`` merges flags over the environment over a TOML file (see config.py); the supervisor hands the result to the
roles through the environment (``to_environ``), so a role started alone by systemd or a container is configured in
the same way.  Bounds are checked once, here.
"""

from pathlib import Path

import msgspec


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    data_dir: Path
    database_url: str | None = None  # None: the embedded server below data_dir
    workers: int = 2
    max_concurrent_http: int = 500
    max_per_host: int = 100  # over the whole cluster; 0 = none
    http: str = "127.0.0.1:8700"  # host:port of the coordinator's HTTP server
    http_cert: Path | None = None  # PEM, the chain of the server's certificate; with http_key: HTTPS
    http_key: Path | None = None
    http_behind_tls: bool = False  # a proxy ends TLS before the HTTP server
    allow_private: bool | None = None  # polls of private addresses; None: see config.allows_private
    retention_days: int = 90
    history_minutes_days: int = 7
    history_hours_days: int = 400
    history_years: int = 5  # days and weeks
    reload_interval_s: int = 300
    body_limit_bytes: int = 1 << 20
    secrets_dir: Path | None = None  # of the host of each worker
    grace_s: int = 30  # how long in-flight requests may take at a stop
    wal_fsync: str = "interval"  # off | interval | batch
    wal_fsync_interval_ms: int = 200
    wal_limit_bytes: int = 4 << 30  # of one worker
    wal_free_floor_bytes: int = 256 << 20  # of the disk
    wal_full: str = "stop"  # stop | drop_oldest
    log_level: str = "info"  # debug | info | warning | error
    log_format: str = "auto"  # auto | human | json
    control_endpoint: str = ""  # default ipc://DATA_DIR/run/control.sock
    results_endpoint: str = ""  # default ipc://DATA_DIR/run/results.sock
    admin_endpoint: str = ""  # default ipc://DATA_DIR/run/admin.sock
    # Set by the supervisor for the roles it starts:
    name: str = ""  # worker-3, writer, coordinator
    incarnation: str = ""  # of this start of the process: a UUID in hex
    run_id: str = ""  # identifies one `cluster up`; totals in /status count from it
    run_started_at_ms: int = 0
    supervised: bool = False
    replay: bool = False  # a worker that only delivers what is in the WAL, and ends

    @property
    def run_dir(self) -> Path:
        return self.data_dir / "run"

    @property
    def wal_dir(self) -> Path:
        return self.data_dir / "wal"

    @property
    def control(self) -> str:
        return self.control_endpoint or f"ipc://{self.run_dir}/control.sock"

    @property
    def results(self) -> str:
        return self.results_endpoint or f"ipc://{self.run_dir}/results.sock"

    @property
    def admin(self) -> str:
        return self.admin_endpoint or f"ipc://{self.run_dir}/admin.sock"
