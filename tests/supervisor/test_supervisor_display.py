"""The progress of a load: a bar on a terminal, a line now and then elsewhere."""

import io
import logging

import pytest

from cluster.messages.control import CoordinatorHeartbeat
from cluster.supervisor.display import LOG_EVERY_MS, Display


class Terminal(io.StringIO):
    def isatty(self):
        return True


def beat(loaded, total=1_000, phase="loading"):
    return CoordinatorHeartbeat(loaded, total, 0, phase, True)


@pytest.fixture
def logged(caplog):
    caplog.set_level(logging.INFO, "cluster.supervisor")
    return lambda: [record.getMessage() for record in caplog.records]


def test_without_a_terminal_a_long_load_is_logged_now_and_then(logged):
    display = Display(io.StringIO(), human=True)
    began = [display.show_progress(beat(second), second * 1_000) for second in range(1, 13)]
    assert logged() == ["loading projects: 6 of 1000", "loading projects: 11 of 1000"]
    assert LOG_EVERY_MS == 5_000
    assert not any(began)
    assert display.show_progress(beat(1_000, phase="running"), 13_000)
    assert not display.show_progress(beat(1_000, phase="running"), 14_000)
    assert logged()[-1] == "polling 1000 projects"


def test_a_short_load_says_only_that_polling_began(logged):
    display = Display(io.StringIO(), human=False)
    display.show_progress(beat(0, None), 1_000_000)
    display.show_progress(beat(3, 3, "running"), 1_001_000)
    assert logged() == ["polling 3 projects"]


def test_on_a_terminal_there_is_a_bar_and_lines_pass_above_it(logged, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    display = Display(terminal, human=True)
    display.write_line("before")
    display.show_progress(beat(250), 0)
    display.write_line("\x1b[32mmeanwhile\x1b[0m")
    display.show_progress(beat(500), 20_000)
    display.show_progress(beat(1_000, phase="gathering"), 21_000)
    display.show_progress(beat(1_000, phase="running"), 22_000)
    display.write_line("after")
    text = terminal.getvalue()
    for part in ("before\n", "loading projects", "250/1000", "meanwhile", "gathering workers"):
        assert part in text
    assert text.endswith("after\n")
    assert logged() == ["polling 1000 projects"]
    display.close()
