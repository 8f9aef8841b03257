"""A cable that is pulled out: real packets, kept connections, time-outs, and a target that is dead all the time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def test_a_cable_that_is_pulled_out_is_no_targets_fault():
    path = os.pathsep.join([str(HERE.parent.parent), str(HERE)])
    own_network = ["unshare", "--user", "--map-root-user", "--net"]
    try:
        tried = subprocess.run(
            [*own_network, "ip", "link", "add", "near", "type", "veth", "peer", "name", "far"],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("no unshare on this machine")
    if tried.returncode:
        pytest.skip(f"no networks of one's own on this machine: {tried.stderr.strip()}")
    done = subprocess.run(
        [*own_network, sys.executable, str(HERE / "network_down.py")],
        capture_output=True, text=True, timeout=150, check=False, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    phases = dict(json.loads(line) for line in done.stdout.splitlines())
    assert list(phases) == ["up", "down", "up again"]
    for name, found in phases.items():
        dead = found.pop("10.99.0.1")
        if name != "down":
            assert set(dead) <= ({"connect_timeout"} if name == "up" else {"connect_timeout", "local"})
            assert dead["connect_timeout"] >= 2, "others answer: it is its own fault"
        for host, outcomes in found.items():
            allowed = {"up": {"success"}, "down": {"success", "local"}, "up again": {"success", "local"}}[name]
            assert set(outcomes) <= allowed, (name, host, outcomes)
    assert all(found["local"] >= 2 for found in phases["down"].values())
    assert all(found["success"] >= 2 for found in phases["up again"].values())
