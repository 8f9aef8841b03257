"""The seed and size of a run, from the environment; long runs only when asked for; figures in the summary."""

import os
import random
import sys

import pytest

from tests.faults import report

SEED_MAX = 2**32


def pytest_collection_modifyitems(config, items):
    if "faults" in (config.option.markexpr or ""):
        return
    asked_for = [item for item in items if item.get_closest_marker("faults") is None]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(asked_for)])
    items[:] = asked_for


def pytest_terminal_summary(terminalreporter):
    if text := report.summary():
        terminalreporter.section("faults")
        terminalreporter.write(text)


@pytest.fixture
def seed(say):
    """FAULTS_SEED, or a new one; either way it is printed."""
    chosen = int(os.environ.get("FAULTS_SEED") or random.SystemRandom().randrange(SEED_MAX))
    say(f"FAULTS_SEED={chosen}")
    return chosen


@pytest.fixture
def size():
    """``size(NAME, default)``: FAULTS_NAME from the environment, a whole number."""

    def size(name, default):
        return int(os.environ.get(f"FAULTS_{name}") or default)

    return size


@pytest.fixture
def say(capsys, request):
    """Print as it happens: at once in a long run, else with the test's output."""

    def say(text):
        if request.node.get_closest_marker("faults") is None:
            print(text)
            return
        with capsys.disabled():
            print(text, flush=True, file=sys.stdout)

    return say
