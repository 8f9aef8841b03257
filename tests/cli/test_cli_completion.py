"""What shells offer: asked of click as the scripts do it, and of real shells where they are installed."""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import asyncpg
import pytest

from cluster.cli import completing
from tests.checkout_command import path_with_cluster
from tests.cli.test_cli_admin import STATUS
from tests.conftest import run_apart

SHELLS = ("bash", "zsh", "fish")


@pytest.fixture
def environ(tmp_path, data_dir):
    """A PATH on which ``cluster`` is this checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CLUSTER_")}
    kept.pop("DATABASE_URL", None)
    return kept | {
        "PATH": path_with_cluster(tmp_path),
        "CLUSTER_DATA_DIR": str(data_dir),
        "HOME": str(tmp_path),
    }


def offered(environ, *words):
    """What click offers for the last of the words, as the script for bash asks."""
    asked = {"_CLUSTER_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(["cluster"], env=environ | asked, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == "", done.stderr
    return [line.split(",", 1)[1] for line in done.stdout.splitlines() if line]


def test_commands_options_and_words(environ):
    assert offered(environ, "cluster", "dr") == ["drain"]
    assert {"status", "top", "doctor", "projects", "completion"} <= set(offered(environ, "cluster", ""))
    assert offered(environ, "cluster", "projects", "ex") == ["export"]
    assert offered(environ, "cluster", "status", "--wa") == ["--watch"]
    assert offered(environ, "cluster", "up", "--wal-fsync", "") == ["off", "interval", "batch"]
    assert offered(environ, "cluster", "up", "--log-format", "j") == ["json"]
    assert offered(environ, "cluster", "completion", "") == ["bash", "fish", "zsh"]
    assert offered(environ, "cluster", "add", "--ip-version", "") == ["4", "6"]
    assert offered(environ, "cluster", "add", "--method", "p") == ["POST", "PUT", "PATCH"]
    assert offered(environ, "cluster", "add", "--connection-reuse", "n") == ["never"]


def test_workers_of_the_running_cluster(environ, admin):
    workers = [STATUS["workers"][0] | {"name": f"worker-{number}"} for number in (1, 2, 12)]
    admin.replies += [{"type": "ok", "status": STATUS | {"workers": workers}}] * 2
    assert offered(environ, "cluster", "drain", "") == ["worker-1", "worker-2", "worker-12"]
    assert offered(environ, "cluster", "drain", "worker-1") == ["worker-1", "worker-12"]


def test_without_a_cluster_and_without_a_database_nothing_is_offered_in_silence(environ):
    assert offered(environ, "cluster", "drain", "") == []
    assert offered(environ, "cluster", "results", "") == []
    assert offered(environ | {"DATABASE_URL": "postgresql://u@127.0.0.1:1/x"}, "cluster", "results", "") == []
    assert offered(environ | {"DATABASE_URL": "nonsense"}, "cluster", "results", "") == []
    assert offered(environ | {"CLUSTER_CONFIG": "/nowhere"}, "cluster", "results", "1") == []


def test_a_cluster_that_does_not_answer_is_not_waited_for(environ, admin):
    admin.replies.append(None)
    began = time.monotonic()
    assert offered(environ, "cluster", "drain", "") == []
    assert time.monotonic() - began < completing.WAIT_S + 10  # the start of Python included


@pytest.fixture
def with_projects(database_url):
    async def insert():
        conn = await asyncpg.connect(database_url)
        await conn.execute(
            "INSERT INTO projects (id, name, url) SELECT id, 'the shop', 'http://a.example/' "
            "FROM unnest('{1,2,12,123,130}'::bigint[]) AS new(id)"
        )
        await conn.close()

    run_apart(insert)
    return database_url


def test_ids_of_projects(environ, with_projects):
    environ = environ | {"DATABASE_URL": with_projects}
    assert offered(environ, "cluster", "results", "") == ["1", "2", "12", "123", "130"]
    assert offered(environ, "cluster", "results", "12") == ["12", "123"]
    assert offered(environ, "cluster", "projects", "disable", "12", "1") == ["1", "123", "130"]
    assert offered(environ, "cluster", "results", "x") == []
    del environ["DATABASE_URL"]
    assert offered(environ, "cluster", "results", "--database-url", with_projects, "13") == ["130"]


@pytest.mark.parametrize(
    ("prefix", "inside", "outside"),
    [(12, [12, 120, 129, 1_299, 129_999], [1, 11, 13, 119, 130, 1_300]), (0, [0], [1, 10])],
)
def test_an_id_begins_with_its_prefix(prefix, inside, outside):
    condition = completing.ranges_of_prefix(prefix).replace("BETWEEN", "in_range(").replace(" AND ", ", ")
    bounds = [part.split("in_range(")[1].strip(" )") for part in condition.split(" OR ")]
    spans = [tuple(int(each) for each in bound.split(", ")) for bound in bounds]
    assert all(any(low <= each <= high for low, high in spans) for each in inside)
    assert not any(low <= each <= high for low, high in spans for each in outside)
    assert max(high for _, high in spans) < 1 << 63


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_says_where_to_put_it(cluster, shell):
    ran = cluster("completion", shell)
    assert ran.status == 0
    assert ran.err == ""
    assert f"cluster completion {shell}" in ran.out
    assert "_CLUSTER_COMPLETE" in ran.out
    assert ran.out.startswith("#compdef cluster\n" if shell == "zsh" else "# For new shells:")


def test_another_shell_is_wrong_usage(cluster):
    ran = cluster("completion", "powershell")
    assert ran.status == 2
    assert "'bash', 'fish', 'zsh'" in ran.error


def in_shell(shell, environ, script, *arguments):
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run(
        [path, *arguments, "-c", script], env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == "", done.stderr
    return done.stdout.split()


def test_in_bash(environ):
    script = """
        eval "$(cluster completion bash)"
        complete -p cluster >/dev/null || exit 1
        COMP_WORDS=(cluster projects e) COMP_CWORD=2
        _cluster_completion cluster e projects
        echo "${COMPREPLY[@]}"
    """
    assert in_shell("bash", environ, script, "--norc") == ["enable", "export"]


def test_in_zsh(environ):
    script = """
        autoload -Uz compinit && compinit -u
        eval "$(cluster completion zsh)"
        print -r -- "$_comps[cluster]"
    """
    assert in_shell("zsh", environ, script, "-f") == ["_cluster_completion"]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (
            {"_CLUSTER_COMPLETE": "zsh_complete", "COMP_WORDS": "cluster projects e", "COMP_CWORD": "2"},
            ["plain", "enable", "Begin to poll projects; all of them, or none when an id is unknown."],
        ),
        (
            {"_CLUSTER_COMPLETE": "fish_complete", "COMP_WORDS": "cluster projects e", "COMP_CWORD": "e"},
            ["plain", "enable", "Begin to poll projects; all of them, or none when an id is unknown."],
        ),
    ],
    ids=["zsh", "fish"],
)
def test_what_the_scripts_of_other_shells_are_answered(environ, asked, found):
    done = subprocess.run(["cluster"], env=environ | asked, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    words = [word for line in done.stdout.splitlines() for word in re.split(r"[,\t]", line)]
    assert words[:2] == found[:2]
    assert "Begin to poll projects" in done.stdout


def test_in_fish(environ):
    script = 'cluster completion fish | source; complete -C "cluster projects e" | cut -f1'
    assert in_shell("fish", environ, script, "--no-config") == ["enable", "export"]


def test_the_checkout_is_what_is_asked(environ):
    done = subprocess.run(["cluster", "version"], env=environ, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("ringpoll ")
    assert Path(environ["PATH"].split(":")[0], "cluster").exists()
