"""Settings from flags, environment and file: precedence, bounds, one-line errors, the way to the roles."""

import msgspec
import pytest

from cluster import config
from cluster.errors import ExitCode, InvalidInputError
from cluster.settings import Settings

GOOD = {
    "data_dir": ("/tmp/x", "/tmp/x"),
    "database_url": ("postgresql://u:p@h:5432/d", "postgresql://u:p@h:5432/d"),
    "workers": ("8", 8),
    "max_concurrent_http": ("2000", 2000),
    "max_per_host": ("0", 0),
    "http": ("[::1]:8700", "[::1]:8700"),
    "http_cert": ("/etc/tls/chain.pem", "/etc/tls/chain.pem"),
    "http_key": ("/etc/tls/key.pem", "/etc/tls/key.pem"),
    "http_behind_tls": ("true", True),
    "allow_private": ("false", False),
    "retention_days": ("7", 7),
    "history_minutes_days": ("3", 3),
    "history_hours_days": ("800", 800),
    "history_years": ("2", 2),
    "reload_interval": ("2m", 120),
    "body_limit": ("64KiB", 65536),
    "secrets_dir": ("/etc/secrets", "/etc/secrets"),
    "grace": ("45", 45),
    "wal_fsync": ("batch", "batch"),
    "wal_fsync_interval_ms": ("50", 50),
    "wal_limit": ("64MiB", 64 << 20),
    "wal_free_floor": ("0", 0),
    "wal_full": ("drop_oldest", "drop_oldest"),
    "log_level": ("debug", "debug"),
    "log_format": ("json", "json"),
    "control_endpoint": ("ipc:///run/x/control.sock", "ipc:///run/x/control.sock"),
    "results_endpoint": ("ipc:///run/x.sock", "ipc:///run/x.sock"),
    "admin_endpoint": ("ipc:///run/x/admin.sock", "ipc:///run/x/admin.sock"),
}
BAD = {
    "data_dir": ["a\nb"],
    "database_url": ["mysql://x", "postgresql://h:port/d", "nonsense"],
    "workers": ["0", "257", "-1", "two", "1.5", "1e2"],
    "max_concurrent_http": ["0", "100001", "many"],
    "max_per_host": ["-1", "x"],
    "http": ["8700", "localhost:", "localhost:0", "localhost:65536", "ho st:80", ":80", "localhost:٣"],
    "http_cert": ["a\nb"],
    "http_key": ["a\nb"],
    "http_behind_tls": ["yes", "1", "X-Forwarded-Proto"],
    "allow_private": ["yes", "1", "True", "private"],
    "retention_days": ["0", "forever"],
    "history_minutes_days": ["0", "a week"],
    "history_hours_days": ["0", "36501"],
    "history_years": ["0", "101", "1.5"],
    "reload_interval": ["0", "5 parsecs", "25h", "-1s"],
    "body_limit": ["0", "2GiB", "1MB"],
    "secrets_dir": ["a\nb"],
    "grace": ["-1", "2h"],
    "wal_fsync": ["on", "always", "Batch"],
    "wal_fsync_interval_ms": ["9", "60001", "200ms", "1.5"],
    "wal_limit": ["1048575", "0", "1TiB", "1025GiB", "-1"],
    "wal_free_floor": ["-1", "1025GiB", "256MB"],
    "wal_full": ["drop", "drop-oldest", "wait"],
    "log_level": ["loud", "INFO"],
    "log_format": ["xml"],
    "control_endpoint": ["ipc://relative", "udp://x:1", "tcp://10.0.0.1:8710"],
    "results_endpoint": ["/run/x.sock"],
    "admin_endpoint": ["tcp://*:8711"],
}


def by_name(name):
    return next(option for option in config.OPTIONS if option.name == name)


def shown(settings, option):
    value = getattr(settings, option.field)
    return str(value) if option.kind in ("path", "file") else value


def test_the_examples_cover_every_option():
    assert set(GOOD) == set(BAD) == {option.name for option in config.OPTIONS}


def test_every_field_of_the_settings_can_be_configured():
    internal = {"name", "incarnation", "run_id", "run_started_at_ms", "supervised", "replay"}
    fields = {field.name for field in msgspec.structs.fields(Settings)}
    assert {option.field for option in config.OPTIONS} | internal == fields


@pytest.mark.parametrize("name", GOOD)
def test_an_option_comes_from_flag_variable_and_file(name, tmp_path):
    option = by_name(name)
    raw, value = GOOD[name]
    file = tmp_path / "c.toml"
    file.write_text(f'{name} = "{raw}"\n')
    assert shown(config.load({name: raw}, {}), option) == value
    for variable in option.variables:
        assert shown(config.load({}, {variable: raw}), option) == value
    assert shown(config.load({}, {}, file), option) == value
    assert shown(config.load({}, {"CLUSTER_CONFIG": str(file)}), option) == value


@pytest.mark.parametrize(("name", "raw"), [(name, raw) for name, all_bad in BAD.items() for raw in all_bad])
def test_a_wrong_value_is_one_line_with_option_source_and_what_is_allowed(name, raw, tmp_path):
    option = by_name(name)
    file = tmp_path / "c.toml"
    file.write_bytes(f"{name} = '''{raw}'''\n".encode())
    for flags, environ, config_file, source in (
        ({name: raw}, {}, None, option.flag),
        ({}, {option.variable: raw}, None, option.variable),
        ({}, {}, file, f"{name} in {file}"),
    ):
        with pytest.raises(InvalidInputError) as caught:
            config.load(flags, environ, config_file)
        assert source in str(caught.value)
        assert option.allowed in str(caught.value)
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code is ExitCode.USAGE


def test_the_wal_is_below_the_data_directory_and_bounded_by_default():
    settings = config.load({"data_dir": "/data"}, {})
    assert str(settings.wal_dir) == "/data/wal"
    assert (settings.wal_fsync, settings.wal_fsync_interval_ms, settings.wal_full) == ("interval", 200, "stop")
    assert (settings.wal_limit_bytes, settings.wal_free_floor_bytes) == (4 << 30, 256 << 20)


@pytest.mark.parametrize(
    ("http", "loopback"),
    [
        ("127.0.0.1:8700", True), ("127.9.9.9:1", True), ("[::1]:8700", True), ("localhost:8700", True),
        ("LocalHost:8700", True), ("[::ffff:127.0.0.1]:8700", True), ("0.0.0.0:8700", False), ("[::]:8700", False),
        ("10.0.0.7:8700", False), ("127.1:8700", False), ("host.test:8700", False), ("[::ffff:10.0.0.7]:8700", False),
    ],
)  # fmt: skip
def test_private_addresses_are_polled_by_default_only_while_http_is_on_loopback(http, loopback):
    assert config.allows_private(config.load({"http": http}, {})) == loopback
    for said in (True, False):
        assert config.allows_private(config.load({"http": http, "allow_private": said}, {})) == said


def test_behind_a_proxy_others_can_reach_what_is_on_loopback():
    settings = config.load({"http": "127.0.0.1:8700", "http_behind_tls": True}, {})
    assert not config.serves_this_machine_only(settings)
    assert not config.allows_private(settings)
    assert config.serves_this_machine_only(config.load({}, {}))


def test_a_switch_in_a_file_is_a_boolean(tmp_path):
    file = tmp_path / "c.toml"
    for said in (True, False):
        file.write_text(f"allow_private = {str(said).lower()}\n")
        settings = config.load({}, {}, file)
        assert settings.allow_private is said
        assert config.from_environ(config.to_environ(settings)).allow_private is said
    for wrong in ("[true]", "1", "0.0", "1979-05-27"):
        file.write_text(f"allow_private = {wrong}\n")
        with pytest.raises(InvalidInputError, match=r"allow_private in .* must be true or false"):
            config.load({}, {}, file)
    assert "CLUSTER_ALLOW_PRIVATE" not in config.to_environ(config.load({}, {}))  # by default it is worked out anew


def test_flags_win_over_the_environment_which_wins_over_the_file(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("workers = 3\nmax_concurrent_http = 300\nretention_days = 30\n")
    environ = {"CLUSTER_WORKERS": "2", "MAX_CONCURRENT_HTTP": "200", "CLUSTER_GRACE": ""}
    settings = config.load({"workers": "1", "http": None}, environ, file)
    assert (settings.workers, settings.max_concurrent_http, settings.retention_days) == (1, 200, 30)
    assert settings.grace_s == 30


def test_our_own_variable_wins_over_the_common_one():
    environ = {"DATABASE_URL": "postgresql://a/a", "CLUSTER_DATABASE_URL": "postgresql://b/b"}
    assert config.load({}, environ).database_url == "postgresql://b/b"


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("worker = 3\n", "did you mean workers?"),
        ("[workers]\nx = 1\n", "workers in"),
        ("name = 'x'\n", "unknown option name"),
        ("workers = true\n", "an integer from 1 to 256"),
        ("workers = \n", "is not valid TOML"),
        ("workers = [1]\n", "an integer from 1 to 256"),
        ("data_dir = 3\n", "a directory"),
    ],
)
def test_a_wrong_file_is_refused(content, part, tmp_path):
    file = tmp_path / "c.toml"
    file.write_text(content)
    with pytest.raises(InvalidInputError) as caught:
        config.load({}, {}, file)
    assert part in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="cannot read the configuration file"):
        config.load({}, {}, tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidInputError, match="is not valid TOML"):
        config.load({}, {}, tmp_path / "binary.toml")


def test_a_password_is_never_shown():
    with pytest.raises(InvalidInputError) as caught:
        config.load({}, {"DATABASE_URL": "mysql://me:secret@host/db"})
    assert "secret" not in str(caught.value)


def test_the_default_data_directory(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert str(config.load({}, {}).data_dir) == "/var/lib/ringpoll"
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/me")
    assert str(config.load({}, {}).data_dir) == "/home/me/.local/share/ringpoll"
    assert str(config.load({}, {"XDG_DATA_HOME": "/data"}).data_dir) == "/data/ringpoll"
    assert str(config.load({}, {"XDG_DATA_HOME": "relative"}).data_dir) == "/home/me/.local/share/ringpoll"


def test_settings_travel_to_a_role_unchanged():
    settings = msgspec.structs.replace(
        config.load({name: raw for name, (raw, _) in GOOD.items()}, {}),
        name="worker-3",
        incarnation="abc",
        run_id="def",
        run_started_at_ms=123,
        supervised=True,
        replay=True,
    )
    environ = config.role_environ(settings, {"PATH": "/bin", "DATABASE_URL": "postgresql://other/x", "CLUSTER_X": "1"})
    assert environ["PATH"] == "/bin"
    assert "DATABASE_URL" not in environ
    assert config.from_environ(environ) == settings


def test_a_role_alone_names_itself_and_each_start_is_another_incarnation(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "pod-7.example")
    one, two = (config.from_environ({}, role="worker") for _ in range(2))
    assert one.name == "worker-pod-7.example"
    assert one.incarnation != two.incarnation
    assert not one.supervised
    assert config.from_environ({}, role="writer").name == "writer"
    assert config.from_environ({"CLUSTER_NAME": "worker-9"}, role="worker").name == "worker-9"


@pytest.mark.parametrize(
    "environ", [{"CLUSTER_NAME": "../x"}, {"CLUSTER_NAME": "a b"}, {"CLUSTER_RUN_STARTED_AT_MS": "x"}]
)
def test_a_role_refuses_what_no_supervisor_says(environ):
    with pytest.raises(InvalidInputError):
        config.from_environ(environ)
