"""Log lines: their form, their bounds, and that nobody who logs is ever blocked."""

import json
import logging
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import logs
from cluster.logs import HumanFormatter, JsonFormatter, LineAssembler, LogSink, PipeHandler, human_line, parse_line


def record(message="hello", level=logging.INFO, exc_info=None, **extra):
    made = logging.LogRecord("a.b", level, __file__, 1, message, (), exc_info)
    made.__dict__.update(extra)
    return made


def test_a_json_line_has_the_fixed_fields_and_the_extra_ones():
    line = json.loads(JsonFormatter("worker-3").format(record("polled %", level=logging.WARNING, project_id=7)))
    assert line.pop("ts").endswith("Z")
    assert line == {
        "level": "warning",
        "role": "worker-3",
        "pid": os.getpid(),
        "logger": "a.b",
        "msg": "polled %",
        "project_id": 7,
    }


def test_a_traceback_is_part_of_the_line():
    error = ValueError("odd")
    made = record(exc_info=(ValueError, error, None))
    line = json.loads(JsonFormatter("x").format(made))
    assert line["trace"].endswith("ValueError: odd")
    human = HumanFormatter("x", colour=False).format(made)
    assert human.splitlines()[-1] == "    ValueError: odd"


@pytest.mark.parametrize(
    "extra", ["x" * 200_000, "\ud800", object(), {1: 2}, b"\xff"], ids=["long", "surrogate", "object", "map", "bytes"]
)
def test_a_line_is_bounded_and_always_made(extra):
    line = JsonFormatter("x").format(record("m" * 100_000, odd=extra))
    assert len(line.encode()) <= logs.LINE_BYTES_MAX
    assert json.loads(line)["msg"].strip("'").startswith("mmm")


@given(st.lists(st.binary(max_size=40)), st.integers(1, 20))
def test_lines_are_those_of_the_whole_stream_however_it_is_cut(chunks, bytes_max):
    stream = b"".join(chunks)
    assembler = LineAssembler(bytes_max)
    lines = [line for chunk in chunks for line in assembler.feed(chunk)] + assembler.end()
    whole = stream.split(b"\n")
    if whole[-1] == b"":
        del whole[-1]
    assert lines == [line[:bytes_max] for line in whole]


def test_a_pipe_that_nobody_reads_costs_lines_and_their_number_is_told():
    reader, writer = os.pipe()
    try:
        handler = PipeHandler(writer)
        handler.setFormatter(JsonFormatter("worker-1"))
        for number in range(3_000):  # must not block
            handler.emit(record("x" * 1_000, number=number))
        assert handler.dropped > 0
        kept = 3_000 - handler.dropped
        os.set_blocking(reader, False)
        data = b""
        for _ in range(1_000):
            try:
                data += os.read(reader, 1 << 20)
            except BlockingIOError:
                handler.flush()
                if not handler._pending and data.endswith(b"\n"):
                    break
        handler.emit(record("after"))
        data += os.read(reader, 1 << 20)
        lines = [json.loads(line) for line in data.splitlines()]
        assert len(lines) == kept + 2
        assert lines[-2]["msg"].endswith("log lines were dropped: the supervisor did not read them")
        assert lines[-1]["msg"] == "after"
        assert [line["number"] for line in lines[:-2]] == list(range(kept))
    finally:
        os.close(reader)
        os.close(writer)


def test_a_supervisor_that_is_gone_is_not_an_error():
    reader, writer = os.pipe()
    os.close(reader)
    try:
        handler = PipeHandler(writer)
        handler.setFormatter(JsonFormatter("worker-1"))
        handler.emit(record())
        handler.emit(record())
    finally:
        os.close(writer)


@pytest.mark.parametrize("line", [b"Traceback", b"{", b'{"msg": 1}', b'{"a": "b"}', b"\xff\xfe", b"[1]"])
def test_a_line_that_is_not_ours_gets_role_and_pid(line):
    fields = parse_line("worker-1", 42, line)
    assert (fields["role"], fields["pid"], fields["level"]) == ("worker-1", 42, "warning")
    assert fields["msg"] == line.decode(errors="replace")


def test_role_and_pid_are_the_supervisors_word():
    fields = parse_line("worker-1", 42, b'{"level": "info", "msg": "m", "role": "writer", "pid": 1}')
    assert (fields["role"], fields["pid"]) == ("worker-1", 42)


def test_a_human_line_drives_no_terminal():
    line = human_line({"level": "info", "msg": "a\x1b[2Jb\nc", "role": "w", "pid": 1, "x": "\x07"}, colour=False)
    assert "\x1b" not in line
    assert "\x07" not in line
    assert "\n" not in line
    assert "a?[2Jb c" in line


def test_a_sink_keeps_order_and_drops_when_nobody_reads():
    reading = threading.Event()
    written = []

    def write(line):
        reading.wait(10)
        written.append(json.loads(line)["msg"])

    sink = LogSink(write, human=False)
    for number in range(logs.SINK_LINES_MAX + 500):
        sink.pass_on("worker-1", 1, b'{"level": "info", "msg": "%d"}' % number)
    assert sink.dropped >= 499
    reading.set()
    sink.close()
    told = [message for message in written if "were dropped" in message]
    assert len(told) == 1
    numbers = [int(message) for message in written if message.isdecimal()]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= logs.SINK_LINES_MAX


def test_a_sink_survives_a_terminal_that_is_gone():
    def write(_line):
        raise BrokenPipeError

    sink = LogSink(write, human=True, colour=True)
    sink.pass_on("worker-1", 1, b"x")
    sink.pass_on("worker-1", 1, b"y")
    sink.close()
    assert sink._lines.empty()
