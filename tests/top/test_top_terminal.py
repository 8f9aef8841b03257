"""``cluster top`` in a real terminal under a real shell: what is seen, and that the terminal is given back."""

import os
import signal
import sys

import pytest

from tests.top.known import status, worker
from tests.top.pseudo_terminal import PROMPT, PseudoTerminal, is_alive

TAKEN = b"\x1b[?1049h"
GIVEN_BACK = b"\x1b[?1049l"


def begin(terminal, line="cluster top"):
    """Start it; the settings of the terminal before."""
    before = terminal.settings()
    terminal.run(line)
    terminal.wait_for("1 workers 3", "worker-1", "healthy")
    assert terminal.is_cursor_hidden
    return before


def ended(terminal, before, exit_status):
    """It is over, the shell has the terminal, and that is as it was."""
    terminal.wait_until(lambda: GIVEN_BACK in terminal.raw, "the screen to be given back")
    terminal.wait_until(lambda: terminal.children() == [], "the end of the process")
    assert terminal.asked("echo status $?") == [f"status {exit_status}"]
    assert not terminal.is_cursor_hidden
    assert terminal.settings() == before
    assert terminal.raw.count(TAKEN) == terminal.raw.count(GIVEN_BACK)


def test_it_shows_the_cluster_and_leaves_with_q(terminal, server):
    before = begin(terminal)
    terminal.wait_for("1,234", "in flight", "worker-3")
    terminal.wait_until(lambda: server.asked > 2, "more questions than the first")
    terminal.type("q")
    ended(terminal, before, 0)
    assert "Traceback" not in terminal.text


def test_new_numbers_are_seen(terminal, server):
    begin(terminal)
    server.document = status() | {"workers": [worker(9, state="hung")], "active_projects": 4_321}
    terminal.wait_for("worker-9", "hung", "4,321", gone=["worker-1"])
    terminal.type("q")


def test_keys_sort_filter_drill_and_help(terminal, server):
    begin(terminal)
    server.document = status(12)
    terminal.wait_for("1 workers 12")
    terminal.type("/worker-1")
    terminal.wait_for("filter: worker-1_")
    terminal.type("\r")
    terminal.wait_for("worker-12", "filter worker-1", gone=["worker-2 ", "worker-3"])
    terminal.type("\x1b")
    terminal.wait_for("worker-2 ")
    terminal.type("G\r")
    terminal.wait_for("worker worker-12", "partitions 512", "Esc back")
    terminal.type("\x1b[A\x1b")
    terminal.wait_for("worker-2 ", gone=["Esc back"])
    terminal.type("?")
    terminal.wait_for("cluster top: keys", "Ctrl-C", gone=["worker-2"])
    terminal.type("x")
    terminal.wait_for("worker-2 ", gone=["cluster top: keys"])
    terminal.type("p")
    terminal.wait_for("held")
    server.document = status(2)
    asked = server.asked
    terminal.wait_until(lambda: server.asked > asked + 1, "new numbers that are not shown")
    assert "worker-12" in terminal.text
    terminal.type("p")
    terminal.wait_for("1 workers 2", gone=["worker-12", "held"])
    terminal.type("q")


def test_another_size_of_the_terminal(terminal, server):
    begin(terminal)
    assert "loop lag" in terminal.text
    terminal.resize(44, 12)
    terminal.wait_for("worker-1", "late p99", gone=["loop lag"])
    assert len(terminal.lines) == 12
    terminal.resize(15, 4)
    terminal.wait_for("too small")
    terminal.resize(160, 40)
    terminal.wait_for("worker-1", "loop lag", "memory", gone=["too small"])
    terminal.type("q")


def test_a_cluster_that_goes_away_and_comes_back(terminal, server, make_server):
    begin(terminal)
    server.close()
    terminal.wait_for("the cluster is away, asking again: no cluster is running", "worker-1")
    again = make_server()
    again.document = status() | {"active_projects": 77}
    terminal.wait_for("projects 77", gone=["is away"])
    terminal.type("q")


def test_a_cluster_that_falls_silent(terminal, server):
    begin(terminal)
    server._stop.set()  # its lock is held, and nobody answers
    terminal.wait_for("the cluster is away", "did not answer")
    terminal.type("q")


def test_a_database_that_is_not_there_is_said(terminal, server):
    begin(terminal)
    terminal.wait_for("the database is not there", "a database of its own: give --database-url")
    terminal.type("q")


@pytest.mark.parametrize(
    ("number", "exit_status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)], ids=str
)
def test_a_signal_ends_it_and_the_terminal_is_given_back(terminal, server, number, exit_status):
    before = begin(terminal)
    (pid,) = terminal.children()
    os.kill(pid, number)
    ended(terminal, before, exit_status)


def test_ctrl_c_ends_it(terminal, server):
    before = begin(terminal)
    terminal.type("\x03")
    ended(terminal, before, 130)


def test_ctrl_z_gives_the_terminal_back_and_fg_takes_it_again(terminal, server):
    before = begin(terminal)
    terminal.type("\x1a")
    terminal.wait_for("Stopped", PROMPT.strip())
    assert terminal.settings() == before
    assert not terminal.is_cursor_hidden
    server.document = status() | {"active_projects": 55}
    terminal.run("fg")
    terminal.wait_for("projects 55", "worker-1", gone=["Stopped"])
    assert terminal.is_cursor_hidden
    terminal.type("2")
    terminal.wait_for("Enter look into", gone=["worker-1"])
    terminal.type("q")
    ended(terminal, before, 0)


def test_after_a_stop_that_nothing_can_be_done_about_it_draws_anew(terminal, server):
    before = begin(terminal)
    (pid,) = terminal.children()
    os.kill(pid, signal.SIGSTOP)
    terminal.wait_for("Stopped")
    terminal.run("fg")
    terminal.wait_for("worker-1", "Enter look into", gone=["Stopped"])
    terminal.type("q")
    terminal.wait_until(lambda: terminal.children() == [], "the end of the process")
    assert terminal.asked("echo status $?") == ["status 0"]
    assert terminal.settings() == before


def test_an_exception_is_told_on_the_terminal_as_it_was(terminal, server, tmp_path):
    program = tmp_path / "broken.py"
    program.write_text(
        "import sys\nfrom cluster.cli import main\nfrom cluster.top import screen\n"
        "def draw(*_args, **_kwargs):\n    raise RuntimeError('broken on purpose')\n"
        "screen.draw = draw\nmain(['top'])\n"
    )
    before = terminal.settings()
    terminal.run(f"{sys.executable} {program}")
    terminal.wait_for("RuntimeError: broken on purpose")
    assert terminal.asked("echo status $?") == ["status 1"]
    assert terminal.settings() == before
    assert not terminal.is_cursor_hidden
    assert terminal.raw.index(GIVEN_BACK) < terminal.raw.rindex(b"RuntimeError: broken on purpose")


def test_a_terminal_that_is_gone_ends_it(environ, server):
    with PseudoTerminal(environ) as terminal:
        begin(terminal)
        (pid,) = terminal.children()
        os.kill(terminal._shell.pid, signal.SIGKILL)  # without the shell's SIGHUP: reading alone tells
        terminal.hang_up()
        terminal.wait_until(lambda: not is_alive(pid), "the end of the process")


def test_no_colours_where_none_are_wanted(terminal, server):
    begin(terminal, "NO_COLOR=1 cluster top")
    terminal.type("q")
    terminal.wait_until(lambda: GIVEN_BACK in terminal.raw, "the end")
    drawn = terminal.raw[terminal.raw.index(TAKEN) : terminal.raw.index(GIVEN_BACK)]
    assert b"\x1b[7m" in drawn
    assert not any(f"\x1b[{style}3{colour}m".encode() in drawn for style in ("", "1;") for colour in range(8))


def test_colours_otherwise(terminal, server):
    begin(terminal)
    terminal.type("q")
    terminal.wait_until(lambda: GIVEN_BACK in terminal.raw, "the end")
    assert b"\x1b[1;32m" in terminal.raw


def test_without_a_cluster_the_screen_is_not_taken(terminal):
    assert [line for line in terminal.asked("cluster top; echo status $?") if "status" in line] == ["status 3"]
    assert TAKEN not in terminal.raw


@pytest.mark.parametrize("line", ["cluster top | cat", "cluster top < /dev/null", "TERM=dumb cluster top"])
def test_without_a_terminal_it_is_one_line(terminal, server, line):
    said = " ".join(terminal.asked(f"{line}; echo status ${{PIPESTATUS[0]}}"))
    assert "Error: cluster top needs a terminal" in said
    assert "`cluster status --watch`" in said
    assert "status 2" in said
    assert TAKEN not in terminal.raw
