"""The view of ``cluster top`` without a terminal: keys in, what is listed out."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.top.state import (
    COLUMNS,
    GAP,
    PANES,
    Drill,
    ListState,
    Row,
    ViewState,
    arranged,
    change_rows,
    columns_for,
    natural,
    of_worker,
    polls_per_s,
    press,
    printable,
    project_rows,
    read_keys,
    result_rows,
    selected_index,
    window,
    worker_rows,
)
from tests.top.known import DOWN, change, project, result, status, worker

ROWS = [Row(key=str(number), values={"id": number, "name": f"n{number}", "project_id": number}) for number in range(30)]


def pressed(*keys, view=None, rows=ROWS, page=10):
    view = view or ViewState(pane="projects")
    for key in keys:
        view = press(view, key, rows, page)
    return view


def selected(view, rows=ROWS):
    return rows[selected_index(view.list, rows)].key


# ---- moving ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "at"),
    [
        ([], "0"),
        (["down", "down", "j"], "3"),
        (["down", "up", "up", "k"], "0"),
        (["pagedown"], "10"),
        (["pagedown", "pagedown", "pagedown", "pagedown"], "29"),
        (["end", "pageup"], "19"),
        (["end", "home"], "0"),
        (["G", "g", "down"], "1"),
        (["z", "unknown"], "0"),
    ],
)
def test_the_selection_moves_within_the_list(keys, at):
    assert selected(pressed(*keys)) == at


def test_nothing_moves_and_nothing_opens_in_an_empty_list():
    for key in ("down", "end", "enter", "pagedown"):
        assert pressed(key, rows=[]) == ViewState(pane="projects")


def test_the_selection_stays_with_its_row_and_takes_its_place_when_it_is_gone():
    view = pressed("down", "down")
    turned = list(reversed(ROWS))
    assert selected(view, turned) == "2"
    assert selected_index(view.list, turned) == 27
    without = [row for row in ROWS if row.key != "2"]
    assert selected(view, without) == "3"
    assert selected(view, ROWS[:1]) == "0"
    assert selected_index(view.list, []) is None


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 20))
def test_the_selected_row_is_always_in_view(count, at, height):
    at = min(at, count - 1) if count else None
    shown = window(count, at, height)
    assert len(shown) == min(count, height)
    assert not shown or (at in shown and shown[0] >= 0 and shown[-1] < count)


# ---- panes, drills --------------------------------------------------------------------------------------------------


def test_panes_are_chosen_by_number_and_in_turn():
    assert [pressed(key).pane for key in "123"] == list(PANES)
    assert pressed("tab", "tab").pane == "workers"
    assert pressed("right").pane == "changes"
    assert pressed("backtab").pane == "workers"
    assert pressed("left", "left").pane == "changes"


def test_a_worker_then_a_project_of_it_and_back_step_by_step():
    workers = worker_rows(status())
    view = pressed("down", "enter", view=ViewState(), rows=workers)
    assert view.drills == (Drill("worker", "worker-2"),)
    assert view.list_name == "worker"
    assert view.project_id is None
    view = pressed("down", "enter", view=view)
    assert view.drills == (Drill("worker", "worker-2"), Drill("project", "1"))
    assert view.project_id == 1
    assert pressed("enter", view=view) == view  # a result has nothing below it
    view = pressed("escape", view=view)
    assert view.list_name == "worker"
    assert pressed("backspace", view=view).drills == ()
    assert pressed("2", view=view).drills == ()


def test_a_change_leads_to_its_project():
    assert pressed("down", "enter", view=ViewState(pane="changes")).project_id == 1


def test_a_project_that_is_opened_anew_begins_at_its_newest_result():
    view = pressed("enter")
    view = pressed("down", "down", view=view)
    assert view.list.index == 2
    again = pressed("escape", "down", "enter", view=view)
    assert (again.list.selected, again.list.index) == (None, 0)


def test_help_hold_leave():
    assert pressed("?").is_help
    assert not pressed("?", "x").is_help
    assert not pressed("?", "down").list.index
    assert pressed("?", "q").is_over
    assert pressed("p").is_paused
    assert not pressed(" ", " ").is_paused
    assert pressed("q").is_over
    assert pressed("ctrl-c").is_over


# ---- sorting and filtering ------------------------------------------------------------------------------------------


def test_columns_are_sorted_by_in_turn_each_in_its_own_direction():
    view = ViewState(pane="projects")
    seen = []
    for _ in COLUMNS["projects"]:
        view = pressed("s", view=view)
        seen.append((view.list.sort, view.list.descending))
    assert sorted(seen) == sorted((each.key, each.descending) for each in COLUMNS["projects"])
    assert pressed("s", "S").list == ViewState(pane="projects").list
    assert pressed("r").list.descending is not ViewState(pane="projects").list.descending
    assert view.lists["workers"] == ViewState().lists["workers"]


@pytest.mark.parametrize("name", COLUMNS)
def test_each_list_is_sorted_by_a_column_it_has(name):
    assert ViewState().lists[name].sort in {each.key for each in COLUMNS[name]}


def keys_of(rows):
    return [row.key for row in rows]


def test_failing_projects_come_first_then_the_slowest():
    rows = project_rows([project(1), project(2, **DOWN), project(3), project(4, **DOWN), project(5, status=None)])
    assert keys_of(arranged(rows, ViewState().lists["projects"])) == ["4", "2", "3", "1", "5"]
    assert keys_of(arranged(rows, ViewState().lists["projects"], failing_only=True)) == ["4", "2"]


def test_what_is_not_known_is_last_in_either_direction():
    rows = project_rows([project(1), project(2, response_time_ms=None), project(3)])
    by_time = ListState(sort="response_ms", descending=True)
    assert keys_of(arranged(rows, by_time)) == ["3", "1", "2"]
    assert keys_of(arranged(rows, msgspec.structs.replace(by_time, descending=False))) == ["1", "3", "2"]


def test_names_are_ordered_as_people_count():
    workers = worker_rows({"workers": [worker(number) for number in (10, 2, 1)]})
    by_name = ListState(sort="name", descending=False)
    assert keys_of(arranged(workers, by_name)) == ["worker-1", "worker-2", "worker-10"]
    assert sorted(["b2", "b10", "a", "10", "9"], key=natural) == ["9", "10", "a", "b2", "b10"]


def test_the_latest_worker_is_first_at_first():
    assert keys_of(arranged(worker_rows(status()), ViewState().list)) == ["worker-1", "worker-2", "worker-3"]
    worse = {"workers": [worker(1), worker(2, lateness_ms={"p99": 900.0})]}
    assert keys_of(arranged(worker_rows(worse), ViewState().list)) == ["worker-2", "worker-1"]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("", ["2", "1", "12"]),
        ("SHOP 1", ["1", "12"]),
        ("shop12.example", ["12"]),
        ("503", ["2"]),
        ("down", ["2"]),
        ("hush", []),
        ("nothing", []),
    ],
)
def test_a_filter_looks_for_all_its_words(words, found):
    rows = project_rows([project(1), project(2, **DOWN), project(12)])
    state = msgspec.structs.replace(ViewState().lists["projects"], filter=words)
    assert sorted(keys_of(arranged(rows, state)), key=found.index if found else None) == found


def test_a_filter_is_typed_taken_corrected_and_left():
    typing = pressed("/", "a", "b", "backspace", "c", "q", "tab")
    assert typing.typing == "acq"
    assert not typing.is_over
    assert pressed("enter", view=typing).list.filter == "acq"
    assert pressed("escape", view=typing).list.filter == ""
    assert pressed("ctrl-u", "z", view=typing).typing == "z"
    assert pressed("ctrl-c", view=typing).is_over
    taken = pressed("enter", view=typing)
    assert pressed("/", view=taken).typing == "acq"
    assert pressed("escape", view=taken).list.filter == ""
    assert taken.lists["workers"].filter == ""


def test_a_filter_has_an_end():
    assert len(pressed("/", *("x" * 500)).typing) == 200


# ---- rows -----------------------------------------------------------------------------------------------------------


def test_projects_of_a_worker_are_those_whose_newest_result_it_has():
    rows = project_rows([project(1), project(2), project(3), project(4)])
    assert keys_of(of_worker(rows, "worker-2")) == ["1", "4"]


def test_a_project_without_a_name_is_its_url_without_the_password():
    (row,) = project_rows([project(1, name="")])
    assert row.values["name"] == "https://ann:***@shop1.example/health"


@pytest.mark.parametrize(
    ("changes", "state", "look"),
    [
        ({}, "up", ""),
        ({"status": None}, None, ""),
        ({"status": "unknown"}, "up", "warning"),
        ({"status": "failure"}, "up", "failure"),
        (DOWN, "down", "failure"),
        ({"state": "up"}, "up", ""),
    ],
)
def test_the_state_of_a_project(changes, state, look):
    (row,) = project_rows([project(1, **changes)])
    assert (row.values["state"], row.look) == (state, look)


@pytest.mark.parametrize(
    ("changes", "look"),
    [({}, ""), ({"state": "starting"}, "warning"), ({"state": "hung"}, "failure"), ({"wal_state": "full"}, "warning")],
)
def test_the_look_of_a_worker(changes, look):
    assert worker_rows({"workers": [worker(1, **changes)]})[0].look == look


def test_rows_of_what_is_not_known_yet():
    assert worker_rows({}) == []
    (row,) = worker_rows({"workers": [{}]})
    assert row.values["late_p99"] is None


def test_changes_of_a_project_that_was_deleted():
    (row,) = change_rows([change(3, name=None, url=None)])
    assert row.values["name"] == "deleted"


def test_what_others_wrote_moves_no_cursor():
    evil = "a\x1b[2J\r\nb\x00\u200e"
    rows = [
        *project_rows([project(1, name=evil, worker=evil, error_code="x", error_message=evil)]),
        *change_rows([change(1, name=evil, error_message=evil)]),
        *result_rows([result(1, worker=evil, error_code="x", error_message=evil)]),
        *worker_rows({"workers": [worker(1, name=evil, state=evil)]}),
    ]
    texts = [value for row in rows for value in (*row.values.values(), row.text, row.key) if isinstance(value, str)]
    assert [text for text in texts if not text.isprintable()] == []
    assert printable(evil) == "a?[2J??b??"


@pytest.mark.parametrize(
    ("before", "after", "seconds", "rate"),
    [(100, 300, 2.0, 100.0), (300, 100, 1.0, None), (100, 100, 1.0, 0.0), (1, 2, 0.0, None), (None, 5, 1.0, 5.0)],
)
def test_polls_per_second_between_two_documents(before, after, seconds, rate):
    assert polls_per_s({"total_requests": before}, {"total_requests": after}, seconds) == rate


# ---- columns --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 140, 300])
def test_columns_fill_a_width_and_no_more(name, width):
    columns = columns_for(name, width)
    used = sum(each for _, each in columns) + GAP * (len(columns) - 1)
    assert used <= width or all(not column.rank for column, _ in columns)
    wider = [column for column, _ in columns_for(name, width + 20)]
    assert {column.key for column, _ in columns} <= {column.key for column in wider}


def test_a_wide_terminal_has_all_columns_and_a_narrow_one_those_that_matter():
    assert len(columns_for("workers", 300)) == len(COLUMNS["workers"])
    assert [column.key for column, _ in columns_for("projects", 40)] == ["name", "state", "response_ms"]


# ---- keys as bytes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "keys"),
    [
        (b"q?/", ["q", "?", "/"]),
        (b"\x1b[A\x1b[B\x1bOC\x1b[D", ["up", "down", "right", "left"]),
        (b"\x1b[5~\x1b[6~\x1b[H\x1b[4~\x1b[Z", ["pageup", "pagedown", "home", "end", "backtab"]),
        (b"\r\n\t\x7f\x08\x03\x15", ["enter", "enter", "tab", "backspace", "backspace", "ctrl-c", "ctrl-u"]),
        (b"\x1b[15;2~x", ["x"]),
        (b"\x1b[1;5Cx", ["x"]),
        ("ä\u20ac".encode(), ["ä", "\u20ac"]),
        (b"\xffx", ["\ufffd", "x"]),
        (b"\x01\x02", []),
        (b"\x1bx", ["escape", "x"]),
    ],
)
def test_keys_of_a_terminal(sent, keys):
    found, rest = read_keys(sent, is_complete=True)
    assert (found, rest) == (keys, b"")


def test_a_key_that_comes_in_parts_is_waited_for():
    assert read_keys(b"a\x1b") == (["a"], b"\x1b")
    assert read_keys(b"\x1b[") == ([], b"\x1b[")
    assert read_keys(b"\x1b[5") == ([], b"\x1b[5")
    assert read_keys(b"\xc3") == ([], b"\xc3")
    assert read_keys(b"\x1b", is_complete=True) == (["escape"], b"")


def test_a_sequence_without_an_end_is_passed_over():
    assert read_keys(b"\x1b[12345678901234") == ([], b"")


@given(st.binary(max_size=60))
def test_any_bytes_are_read_to_their_end(sent):
    keys, rest = read_keys(sent, is_complete=True)
    assert rest == b""
    assert all(key and (len(key) > 1 or key.isprintable()) for key in keys)


@given(st.lists(st.sampled_from(["up", "down", "end", "enter", "escape", "/", "a", "s", "r", "f", "1", "2", "3", "tab",
                                 "?", "p", "pagedown", "backspace", "z"]), max_size=40))  # fmt: skip
def test_any_keys_leave_a_view_that_can_be_drawn(keys):
    view = pressed(*keys)
    assert view.list.sort in {each.key for each in COLUMNS[view.list_name]}
    assert view.is_over is False
