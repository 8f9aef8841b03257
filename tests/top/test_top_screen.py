"""What is drawn: as many lines as there are, none too wide, and on them what matters."""

import io

import pytest
from rich.console import Console

from cluster.top.screen import HELP, ansi_of, draw, page_rows, rows_in_view
from cluster.top.state import Drill, ViewState, press
from tests.top.known import DOWN, change, detail, project, result, snapshot, status, worker

SIZES = [(20, 6), (32, 10), (80, 24), (132, 43), (250, 60)]
VIEWS = {
    "workers": ViewState(),
    "projects": ViewState(pane="projects"),
    "changes": ViewState(pane="changes"),
    "worker": ViewState(drills=(Drill("worker", "worker-2"),)),
    "gone": ViewState(drills=(Drill("worker", "worker-9"),)),
    "project": ViewState(pane="projects", drills=(Drill("project", "7"),)),
    "asked": ViewState(pane="projects", drills=(Drill("project", "8"),)),
    "help": ViewState(is_help=True),
    "typing": ViewState(typing="shop"),
}
WIDE = snapshot(
    projects=[
        project(number, **DOWN | {"name": "\u4f60\u597d" * 20, "error_message": "x" * 400}) for number in range(99)
    ]
)


def drawn(view, known=None, width=132, height=43, now=100.0):
    known = snapshot(detail=detail(7)) if known is None else known
    return [line.plain for line in draw(view, known, width=width, height=height, now=now)]


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("known", [snapshot(detail=detail(7)), snapshot(status=None, projects=[]), WIDE])
def test_it_is_as_large_as_the_terminal(name, width, height, known):
    lines = draw(VIEWS[name], known, width=width, height=height, now=100.0)
    assert len(lines) == height
    assert max(line.cell_len for line in lines) <= width


@pytest.mark.parametrize(("width", "height"), [(19, 24), (80, 5), (1, 1)])
def test_a_terminal_that_is_too_small_is_told(width, height):
    assert "".join(drawn(ViewState(), width=width, height=height)).startswith("too small"[: width - 1])


def test_the_head_has_the_totals():
    text = "\n".join(drawn(ViewState(), width=200)[:2])
    for part in ("healthy", "projects 1,234", "polls/s 54.3", "in flight 6/500", "late p50 0.5 p99 4.0 ms",
                 "up 00:01:30", "ok 4,900", "failed 90", "missed 7", "unknown 10", "writer running 55 rows/s",
                 "database up"):  # fmt: skip
        assert part in text


def test_workers_in_their_columns():
    lines = drawn(ViewState())
    assert any(line.startswith("worker  ") and "late p99" in line for line in lines)
    row = next(line for line in lines if line.startswith("worker-1"))
    assert row.split()[:5] == ["worker-1", "running", "100", "1", "0"]
    assert "29.0" in row


def test_projects_and_changes():
    lines = drawn(ViewState(pane="projects"))
    rows = [line for line in lines if "shop " in line]
    assert rows[0].split()[:4] == ["2", "shop", "2", "down"]
    assert "503 where 200 was expected"[:20] in rows[0]
    assert rows[1].split()[0] == "12"
    assert any("shop 1" in line and " up" in line for line in drawn(ViewState(pane="changes")))


def test_what_is_not_all_of_a_large_table_is_said():
    known = snapshot(projects_seen=2_000, projects_enabled=100_000)
    assert "looked at 2,000 of 100,000" in "\n".join(drawn(ViewState(pane="projects"), known))
    assert "looked at" not in "\n".join(drawn(ViewState(pane="projects")))


def test_a_worker_with_its_numbers_and_its_projects():
    text = "\n".join(drawn(VIEWS["worker"], width=200))
    for part in ("worker worker-2", "pid 4002", "projects 200", "partitions 512", "in flight 2/60", "p50 0.5 p99 28.0",
                 "WAL ok 4.8 MiB", "unacked 4", "unknown stall 3", "loop lag 1.0 ms", "memory 57.2 MiB"):  # fmt: skip
        assert part in text
    assert "shop 1" in text
    assert "shop 2" not in text
    assert "worker worker-9 is gone" in "\n".join(drawn(VIEWS["gone"]))


def test_a_project_with_its_results_phases_changes_and_missed():
    text = "\n".join(drawn(VIEWS["project"], width=200))
    for part in ("project 7", "down", "since 2026-01-31 11:00:00", "every 30 seconds", "expects 200",
                 "GET https://ann:***@shop.example/health", "changes down 2026-01-31 11:00:00",
                 "missed 3 down from 2026-01-31 10:00:00", "last 5 results: 5 ok, mean 15.0 ms, max 17.0 ms",
                 "2026-01-31 12:00:05"):  # fmt: skip
        assert part in text
    row = next(line for line in text.splitlines() if line.startswith("2026-01-31 12:00:05"))
    assert row.split()[2:11] == ["success", "200", "17.0", "0.7", "1.1", "2.2", "3.3", "4.4", "0.5"]
    assert "hush" not in text


@pytest.mark.parametrize(
    ("changes", "results", "said"),
    [
        ({"enabled": False}, 5, "paused"),
        ({"state": None}, 5, "up"),
        ({"state": None}, 0, "pending"),
    ],
)
def test_the_state_of_a_project_in_a_word(changes, results, said):
    made = detail(7, results=[result(second) for second in range(results)])
    made.project.update(changes)
    line = next(line for line in drawn(VIEWS["project"], snapshot(detail=made)) if line.startswith("project 7"))
    assert line.split()[2] == said


def test_a_project_that_is_gone_or_asked_for():
    assert "there is no project 7 any more" in "\n".join(
        drawn(VIEWS["project"], snapshot(detail=detail(7, project=None)))
    )
    assert "project 8: asking the database" in "\n".join(drawn(VIEWS["asked"]))


def test_a_cluster_that_is_away_and_a_database_that_is():
    known = snapshot(status_why="no cluster is running on /x", database_why="cannot reach it")
    text = "\n".join(drawn(ViewState(), known, now=165.0))
    assert "the cluster is away, asking again: no cluster is running on /x; heard of it 00:01:05 ago" in text
    assert "the database is not there, asking again: cannot reach it" in text
    assert "worker-1" in text


def test_empty_lists_say_why():
    assert "no workers" in drawn(ViewState(), snapshot(status=status(0)))[4]
    assert "nothing yet" in "\n".join(drawn(ViewState(pane="projects"), snapshot(projects=[])))
    away = snapshot(projects=[], database_why="no")
    assert "the database was not reached yet" in "\n".join(drawn(ViewState(pane="projects"), away))
    filtered = press(press(press(ViewState(), "/", [], 1), "z", [], 1), "enter", [], 1)
    assert "nothing passes the filter" in "\n".join(drawn(filtered))


def test_the_foot_says_where_one_is_and_what_narrows_the_list():
    view = ViewState(pane="projects", failing_only=True)
    assert drawn(view)[-1].startswith("1/1  failing only  Enter look into")
    typing = press(press(ViewState(), "/", [], 1), "é", [], 1)
    assert drawn(typing)[-1] == "filter: é_"
    assert drawn(VIEWS["worker"])[-1].split("  ")[1] == "Esc back"


def test_the_help_names_every_key():
    text = "\n".join(drawn(ViewState(is_help=True)))
    for keys, meaning in HELP:
        assert keys in text
        assert meaning in text
    assert "held, p goes on" in "\n".join(drawn(ViewState(is_paused=True)))


def test_a_long_list_keeps_the_selected_row_in_view():
    known = snapshot(status=status(50))
    view = ViewState()
    for _ in range(3):
        rows = rows_in_view(view, known)
        view = press(view, "pagedown", rows, page_rows(view, known, 80, 24))
    lines = drawn(view, known, 80, 24)
    assert any(line.startswith(rows_in_view(view, known)[view.list.index].key + " ") for line in lines)
    assert page_rows(view, known, 80, 24) == 19


def console(**environ):
    return Console(
        force_terminal=True, file=io.StringIO(), width=100, height=30, legacy_windows=False,
        _environ={"TERM": "xterm-256color", **environ},
    )  # fmt: skip


def test_without_colours_there_are_none():
    lines = draw(ViewState(pane="projects"), snapshot(), width=100, height=30, now=100.0)
    coloured = ansi_of(console(), lines)
    plain = ansi_of(console(NO_COLOR="1"), lines)
    assert len(coloured) == len(plain) == 30
    assert any("\x1b[31m" in line for line in coloured)
    assert not any(f"\x1b[3{number}m" in line for line in plain for number in range(8))
    assert any("\x1b[7m" in line for line in plain)  # the selected row is still to be seen


def test_a_hung_worker_is_red():
    known = snapshot(status=status() | {"workers": [worker(1, state="hung")], "writer": {}, "database": {}})
    lines = ansi_of(console(), draw(ViewState(), known, width=100, height=30, now=100.0))
    assert any("\x1b[7;31mhung" in line or "\x1b[31mhung" in line or ";31m" in line for line in lines)


def test_changes_of_a_deleted_project_can_be_drawn():
    known = snapshot(changes=[change(1, name=None, url=None)])
    assert any("deleted" in line for line in drawn(ViewState(pane="changes"), known))
