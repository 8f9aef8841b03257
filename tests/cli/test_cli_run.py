"""Commands that start processes, and the frame of the command line."""

import importlib.metadata
import os
import re
import subprocess
import sys

import click
import pytest

from cluster import cli, config
from cluster.cli.variables import misspelt_variables


def test_version(cluster):
    ran = cluster("version")
    assert ran.status == 0
    assert ran.out.startswith(f"ringpoll {importlib.metadata.version('ringpoll')} (Python ")


def test_help_everywhere(cluster):
    commands = [(), *((name,) for name in cli.cluster.commands)]
    commands += [("projects", name) for name in cli.cluster.commands["projects"].commands]
    for arguments in commands:
        ran = cluster(*arguments, "--help")
        assert ran.status == 0, ran
        assert ran.out.startswith("Usage: cluster")


def test_every_command_of_the_design_is_there():
    assert set(cli.cluster.commands) == {
        "up", "down", "status", "reload", "audit", "migrate", "version", "add", "remove", "scale", "drain", "projects",
        "changes", "results", "secret", "coordinator", "worker", "writer", "wal", "bench", "plan",
        "completion", "doctor", "top",
        "token", "user",
    }  # fmt: skip
    assert set(cli.cluster.commands["projects"].commands) == {"list", "show", "enable", "disable", "import", "export"}


def test_every_command_takes_data_dir_and_config():
    def walk(command):
        if isinstance(command, click.Group):
            for each in command.commands.values():
                yield from walk(each)
        elif command.name not in {"version", "bench", "plan", "completion"}:
            yield command

    for command in walk(cli.cluster):  # the others touch no data directory
        flags = {flag for parameter in command.params for flag in parameter.opts}
        assert {"--data-dir", "--config"} <= flags, command.name


def test_up_takes_every_option():
    flags = {flag for parameter in cli.cluster.commands["up"].params for flag in parameter.opts}
    assert {option.flag for option in config.OPTIONS} <= flags


def test_without_a_command_the_help_is_shown(cluster):
    ran = cluster()
    assert ran.status == 2
    assert "Usage: cluster" in ran.out + ran.err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("up", "--workers", "0"), "--workers must be an integer from 1 to 256, not '0'"),
        (("up", "--http", "nonsense"), "--http must be HOST:PORT"),
        (("up", "--database-url", "mysql://x"), "--database-url must be a URL such as postgresql://"),
        (("coordinator",), "the coordinator alone needs a database"),
        (("writer",), "the writer alone needs a database"),
        (("worker", "--name", "../x"), "CLUSTER_NAME must be 1 to 63 letters"),
    ],
)
def test_bad_input_is_one_line(cluster, data_dir, arguments, part):
    ran = cluster(*arguments)
    assert ran.status == 2
    assert part in ran.error
    assert list(data_dir.iterdir()) == []


def test_a_data_directory_that_cannot_be_made_is_one_line(cluster, tmp_path):
    (tmp_path / "file").touch()
    ran = cluster("up", "--data-dir", tmp_path / "file" / "x")
    assert ran.status == 1
    assert f"cannot use the data directory {tmp_path / 'file' / 'x'}: Not a directory" in ran.error


@pytest.mark.parametrize("role", ["coordinator", "writer", "worker"])
def test_a_role_alone_becomes_its_process_configured_by_flags_environment_and_file(
    cluster, monkeypatch, tmp_path, role
):
    executed = []
    monkeypatch.setattr(os, "execve", lambda *arguments: executed.append(arguments))
    monkeypatch.setenv("MAX_CONCURRENT_HTTP", "77")
    file = tmp_path / "c.toml"
    file.write_text('workers = 5\ndatabase_url = "postgresql://h/d"\n')
    assert cluster(role, "--config", file, "--grace", "3s", "--name", f"{role}-x").status == 0
    ((program, arguments, environ),) = executed
    assert (program, arguments) == (sys.executable, [sys.executable, "-m", role, f"{role}-x"])
    settings = config.from_environ(environ)
    assert (settings.workers, settings.max_concurrent_http, settings.grace_s) == (5, 77, 3)
    assert (settings.name, settings.database_url, settings.supervised) == (f"{role}-x", "postgresql://h/d", False)


def test_a_misspelt_variable_is_warned_of(cluster, monkeypatch):
    monkeypatch.setenv("CLUSTER_WORKRES", "3")
    monkeypatch.setenv("CLUSTER_LOGLEVEL", "")  # as if it was not there
    monkeypatch.setenv("CLUSTER_SERVICE_HOST", "10.0.0.1")  # Kubernetes, for a service named "cluster"
    monkeypatch.setenv("CLUSTER_PORT", "tcp://10.0.0.1:80")
    monkeypatch.setenv("CLUSTER_GRACE", "3s")
    ran = cluster("status")
    assert ran.status == 3
    warning, error = ran.err.splitlines()
    assert warning == "Warning: the variable CLUSTER_WORKRES is not known and ignored; did you mean CLUSTER_WORKERS?"
    assert error.startswith("Error: no cluster is running")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("CLUSTER_WORKER", "CLUSTER_WORKERS"),
        ("CLUSTER_MAX_CONCURENT_HTTP", "CLUSTER_MAX_CONCURRENT_HTTP"),
        ("CLUSTER_DATADIR", "CLUSTER_DATA_DIR"),
        ("CLUSTER_LOG_LEVLE", "CLUSTER_LOG_LEVEL"),
        ("CLUSTER_BODYLIMIT", "CLUSTER_BODY_LIMIT"),
    ],
)
def test_what_was_meant(written, meant):
    (line,) = misspelt_variables({written: "x", "PATH": "/bin", "CLUSTERS": "1"})
    assert line == f"the variable {written} is not known and ignored; did you mean {meant}?"
    assert list(misspelt_variables(dict.fromkeys(config.VARIABLES, "x"))) == []


def test_a_reader_that_has_seen_enough_is_not_an_error():
    script = "import sys; from cluster.cli import main; main(['up', '--help'])"
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ran = subprocess.run([sys.executable, "-c", script], stdout=writer, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(writer)
    assert (ran.returncode, ran.stderr) == (1, b"")


def test_errors_never_show_a_traceback():
    ran = subprocess.run([sys.executable, "-m", "cluster", "add", "x"], capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert re.fullmatch(r"Error: url: .*\n", ran.stderr)


@pytest.mark.parametrize(
    ("variable", "value", "status", "part"),
    [
        ("CLUSTER_WORKERS", "many", 2, "CLUSTER_WORKERS must be an integer from 1 to 256, not 'many'"),
        ("CLUSTER_GRACE", "5s", 1, "the demo needs a database"),
    ],
)
def test_a_role_that_cannot_run_says_why_on_one_line(data_dir, variable, value, status, part):
    environ = {"PATH": os.environ["PATH"], "CLUSTER_DATA_DIR": str(data_dir), variable: value}
    ran = subprocess.run(
        [sys.executable, "-m", "cluster.demo"], env=environ, capture_output=True, text=True, check=False
    )
    assert ran.returncode == status
    (line,) = ran.stderr.splitlines()
    assert part in line


@pytest.mark.parametrize(
    ("flags", "environ", "expected"),
    [
        ([], {}, None),
        (["--allow-private"], {}, "true"),
        (["--no-allow-private"], {}, "false"),
        (["--no-allow-private"], {"CLUSTER_ALLOW_PRIVATE": "true"}, "false"),
        ([], {"CLUSTER_ALLOW_PRIVATE": "false"}, "false"),
    ],
)
def test_allow_private_is_a_switch_that_a_worker_receives(cluster, monkeypatch, flags, environ, expected):
    received = []
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "execve", lambda _path, _arguments, environ: received.append(environ))
    ran = cluster("worker", *flags)
    assert ran.status == 0, ran
    assert received[0].get("CLUSTER_ALLOW_PRIVATE") == expected


@pytest.mark.parametrize("options", [["--http", "0.0.0.0:8700"], ["--no-allow-private"]])
def test_a_demo_that_may_not_be_polled_is_not_begun(cluster, options):
    ran = cluster("up", "--demo", *options)
    assert ran.status == 2
    assert "add --allow-private" in ran.err
    assert ran.err.count("\n") == 1
