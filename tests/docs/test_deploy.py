"""The files of deploy/ and the checks agree with the program."""

import os
import re
import shutil
import subprocess
import tomllib

import pytest

from cluster import config
from tests.docs.documents import blocks
from tests.docs.repository_facts import PACKAGES, ROOT, read

TOML = read("deploy/cluster.toml")
_KEY = re.compile(r"^(?:# )?([a-z_]+) = (.+)$", re.MULTILINE)


def test_the_example_has_every_option_once_with_a_comment():
    keys = [key for key, _ in _KEY.findall(TOML)]
    assert sorted(keys) == sorted(option.name for option in config.OPTIONS)
    lines = TOML.splitlines()
    for number, line in enumerate(lines):
        if line and not line.startswith("#"):
            assert lines[number - 1].startswith("# "), f"{line!r} has no comment"


def test_the_example_as_it_is_changes_nothing():
    assert config.load({}, {}, ROOT / "deploy" / "cluster.toml") == config.load({}, {})


def test_everything_in_the_example_is_accepted(tmp_path):
    path = tmp_path / "all.toml"
    path.write_text(re.sub(r"^# (?=[a-z_]+ = )", "", TOML, flags=re.MULTILINE))
    made = config.load({}, {}, path)
    assert set(tomllib.loads(path.read_text())) == {option.name for option in config.OPTIONS}
    assert str(made.data_dir) == "/var/lib/ringpoll"
    assert made.control == f"ipc://{made.data_dir}/run/control.sock"


def test_the_image_gets_every_package_and_what_the_build_reads():
    dockerfile, ignored = read("deploy/Dockerfile"), read(".dockerignore")
    project = tomllib.loads(read("pyproject.toml"))["project"]
    wanted = {*PACKAGES, "pyproject.toml", project["readme"], *project["license-files"]}
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", dockerfile, re.MULTILINE)
        for source in line.split()[:-1]
    }
    assert copied == wanted
    assert {line[1:] for line in ignored.splitlines() if line.startswith("!")} == wanted
    assert all((ROOT / each).exists() for each in wanted)
    assert f"EXPOSE {config.split_address(config.load({}, {}).http)[1]}" in dockerfile
    assert "/healthz" in dockerfile
    assert "USER 10001" in dockerfile


def test_variables_in_the_deployment_files_are_known():
    for name in ("deploy/Dockerfile", "deploy/compose.yaml", "deploy/ringpoll.service"):
        used = set(re.findall(r"\bCLUSTER_[A-Z_]+", read(name)))
        assert used <= config.VARIABLES, name


def test_files_that_are_not_code_are_part_of_the_distribution():
    found = tomllib.loads(read("pyproject.toml"))["tool"]["setuptools"]["package-data"]
    shipped = {path for package, globs in found.items() for each in globs for path in (ROOT / package).glob(each)}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and path.suffix not in {".py", ".pyc"}:
                assert path in shipped, f"{path} is not installed"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_accepts_the_unit(tmp_path):
    unit = tmp_path / "ringpoll.service"
    unit.write_text(
        re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", read("deploy/ringpoll.service"), flags=re.MULTILINE)
    )
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60, check=False)
    complaints = [line for line in done.stderr.splitlines() if unit.name in line]
    assert complaints == []


def test_the_checks_install_and_test_as_the_readme_says():
    (command,) = [line for block in blocks(read("README.md"), "sh") for line in block.splitlines() if "[test]" in line]
    environment, install, tests = command.split(" && ")
    assert environment == "python3 -m venv .venv"
    checks = read(".ci/run")
    assert install.removeprefix(".venv/bin/pip install ") in checks
    assert tests.removeprefix(".venv/bin/python ") in checks
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    subprocess.run(["bash", "-n", ROOT / ".ci" / "run"], check=True)


@pytest.mark.parametrize(
    ("programs", "browser", "promtool"),
    [
        ({"chromium": "", "promtool": ""}, "/chromium", "/promtool"),
        ({"google-chrome": ""}, "/google-chrome", "no promtool: there is no Debian package to take it from; "),
        ({}, "no Chromium: there is no apt-get here to install it with; ", "no promtool: "),
        (
            {"apt-get": "echo 'E: no answer' >&2; exit 100", "id": "echo 0", "dpkg": ""},
            "no Chromium: apt-get could not install it; does a package source answer from here? E: no answer; ",
            "no promtool: apt-get could not download the package prometheus; does a package source answer from here? ",
        ),
        (
            {"apt-get": "", "id": "echo 1000"},
            "no Chromium: installing it takes root: apt-get install chromium; ",
            "no ",
        ),
    ],
    ids=["both there", "another browser", "nothing", "no package source", "no root"],
)
def test_the_checks_say_where_a_browser_or_promtool_is_or_why_not(tmp_path, programs, browser, promtool):
    functions = read(".ci/run").partition("# ---- what the tests want")[2].partition('\necho "== browser ==')[0]
    for name in ("timeout", "tail", "tar"):
        (tmp_path / name).symlink_to(shutil.which(name))
    for name, body in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    script = f"set -uo pipefail\nwork=$1\n#{functions}\nfind_browser\nfind_promtool\n"
    done = subprocess.run(
        [shutil.which("bash"), "-c", script, "bash", tmp_path],
        env={"PATH": str(tmp_path)}, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    first, second = done.stdout.splitlines()
    assert first.removeprefix(str(tmp_path)).startswith(browser)
    assert second.removeprefix(str(tmp_path)).startswith(promtool)
    assert done.stderr == ""
