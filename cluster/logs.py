"""Log lines: how a role writes them, and how a supervisor passes them on.

A supervised role writes one JSON object per line to its standard error, which is a pipe::

    {"ts": "2026-01-31T12:00:00.123Z", "level": "info", "role": "worker-3", "pid": 4711, "logger": "worker", "msg": ""}

followed by whatever ``extra`` the call gave, and ``trace`` for an exception.  The supervisor hands every line of every
role to one :class:`LogSink`, which shows it to people (a terminal) or passes the JSON on; a line that isn't JSON (an
interpreter's traceback) gets role and pid there.  A role alone logs in either form itself.

Nothing here ever blocks who logs: a pipe that nobody reads, or a terminal that is paused, costs lines, and their number
is told as soon as it reads again.  A line has at most ``LINE_BYTES_MAX`` bytes.
"""

import contextlib
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO

import orjson

from cluster.settings import Settings

LINE_BYTES_MAX = 65_536
TEXT_CHARS_MAX = 8_192  # of one message or traceback
PENDING_BYTES_MAX = 1 << 20  # what a role keeps for a pipe that is full
SINK_LINES_MAX = 10_000  # what a supervisor keeps for a terminal that doesn't read
SINK_CLOSE_S = 2.0

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_COLOURS = {
    "debug": "\x1b[2m",
    "info": "\x1b[32m",
    "warning": "\x1b[33m",
    "error": "\x1b[31m",
    "critical": "\x1b[1;31m",
}
_RESET = "\x1b[0m"
_DIM = "\x1b[2m"
_KNOWN_KEYS = frozenset({"ts", "level", "role", "pid", "logger", "msg", "trace"})


def setup(settings: Settings) -> None:
    """Configure ``logging`` in a role's process."""
    handler: logging.Handler
    if settings.supervised:
        handler = PipeHandler(sys.stderr.fileno())
        handler.setFormatter(JsonFormatter(settings.name))
    else:
        handler = logging.StreamHandler(sys.stderr)
        human = is_human(settings.log_format, sys.stderr)
        formatter: logging.Formatter = (
            HumanFormatter(settings.name, colour=sys.stderr.isatty()) if human else JsonFormatter(settings.name)
        )
        handler.setFormatter(formatter)
    _install(handler, settings.log_level)


def is_human(log_format: str, stream: TextIO) -> bool:
    return log_format == "human" or (log_format == "auto" and stream.isatty())


def _install(handler: logging.Handler, level: str) -> None:
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    for library in ("asyncio", "aiohttp", "asyncpg"):
        logging.getLogger(library).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(True)


def record_fields(record: logging.LogRecord, role: str, formatter: logging.Formatter) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "ts": _timestamp(record.created),
        "level": record.levelname.lower(),
        "role": role,
        "pid": record.process,
        "logger": record.name,
        "msg": record.getMessage()[:TEXT_CHARS_MAX],
    }
    fields |= {key: value for key, value in vars(record).items() if key not in _STANDARD and key not in _KNOWN_KEYS}
    if record.exc_info:
        fields["trace"] = formatter.formatException(record.exc_info)[-TEXT_CHARS_MAX:]
    return fields


class JsonFormatter(logging.Formatter):
    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        fields = record_fields(record, self._role, self)
        line = to_json(fields)
        if len(line) > LINE_BYTES_MAX:  # the extra fields are to blame
            line = to_json({key: fields[key] for key in fields if key in _KNOWN_KEYS})
        return line.decode()


class HumanFormatter(logging.Formatter):
    def __init__(self, role: str, *, colour: bool) -> None:
        super().__init__()
        self._role = role
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        return human_line(record_fields(record, self._role, self), colour=self._colour)


class PipeHandler(logging.Handler):
    """Writes lines to a pipe without ever blocking; what doesn't fit is dropped and counted."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._pending = bytearray()
        self.dropped = 0
        os.set_blocking(fd, False)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record).encode(errors="replace") + b"\n"
        except Exception:  # noqa: BLE001 - a message that can't be formatted must not end the role
            self.handleError(record)
            return
        self.flush()
        if len(self._pending) + len(line) > PENDING_BYTES_MAX:
            self.dropped += 1
            return
        if self.dropped and not self._pending:
            note = logging.makeLogRecord(
                {"name": __name__, "levelname": "WARNING", "process": os.getpid(), "created": record.created}
            )
            note.msg = f"{self.dropped} log lines were dropped: the supervisor did not read them"
            self.dropped = 0
            self._pending += self.format(note).encode() + b"\n"
        self._pending += line
        self.flush()

    def flush(self) -> None:
        """Write as much as the pipe takes now."""
        while self._pending:
            try:
                written = os.write(self._fd, self._pending)
            except BlockingIOError:
                return
            except OSError:  # the supervisor is gone; the end of our standard input tells the role
                self._pending.clear()
                return
            del self._pending[:written]


class LineAssembler:
    """Cuts a byte stream into lines; one that is too long is cut off, and the rest of it left out."""

    def __init__(self, bytes_max: int = LINE_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._partial = b""
        self._skipping = False
        self.cut = 0

    def feed(self, data: bytes) -> list[bytes]:
        *complete, rest = (self._partial + data).split(b"\n")
        lines = []
        for line in complete:
            if self._skipping:  # the end of a line whose beginning was handed out
                self._skipping = False
                continue
            if len(line) > self._bytes_max:
                self.cut += 1
            lines.append(line[: self._bytes_max])
        if self._skipping:
            rest = b""
        elif len(rest) > self._bytes_max:
            lines.append(rest[: self._bytes_max])
            self.cut += 1
            self._skipping = True
            rest = b""
        self._partial = rest
        return lines

    def end(self) -> list[bytes]:
        """What is left at the end of the stream."""
        rest, self._partial = self._partial, b""
        return [rest] if rest and not self._skipping else []


class LogSink:
    """Where a supervisor's and its roles' lines come together.  ``write`` is called from a thread of the sink's own."""

    def __init__(self, write: Callable[[str], None], *, human: bool, colour: bool = False) -> None:
        self._write = write
        self._human = human
        self._colour = colour
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue(SINK_LINES_MAX)
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="log-sink", daemon=True)
        self._thread.start()

    def pass_on(self, role: str, pid: int, line: bytes) -> dict[str, Any] | None:
        """Show a line that a role wrote; returns its fields, None for an empty line."""
        if not line.strip():
            return None
        fields = parse_line(role, pid, line)
        self.show(fields)
        return fields

    def show(self, fields: dict[str, Any]) -> None:
        try:
            self._lines.put_nowait(fields)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Show what is waiting, for at most two seconds."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=SINK_CLOSE_S)
            self._thread.join(SINK_CLOSE_S)

    def _run(self) -> None:
        while (fields := self._lines.get()) is not None:
            if self.dropped:
                told, self.dropped = self.dropped, 0
                self._print(_note(f"{told} log lines were dropped: they were not read in time"))
            self._print(fields)

    def _print(self, fields: dict[str, Any]) -> None:
        line = human_line(fields, colour=self._colour) if self._human else to_json(fields).decode()
        with contextlib.suppress(OSError, ValueError):  # the terminal is gone; there is nobody left to tell
            self._write(line)


class SinkHandler(logging.Handler):
    """The supervisor's own log, into the sink."""

    def __init__(self, sink: LogSink, role: str) -> None:
        super().__init__()
        self._sink = sink
        self._role = role
        self.setFormatter(logging.Formatter())

    def emit(self, record: logging.LogRecord) -> None:
        self._sink.show(record_fields(record, self._role, self.formatter or logging.Formatter()))


def setup_supervisor(sink: LogSink, level: str, role: str = "supervisor") -> None:
    _install(SinkHandler(sink, role), level)


def parse_line(role: str, pid: int, line: bytes) -> dict[str, Any]:
    """The fields of a line a role wrote; role and pid are the supervisor's word."""
    if line.startswith(b"{"):
        with contextlib.suppress(orjson.JSONDecodeError):
            fields: dict[str, Any] = orjson.loads(line)
            if isinstance(fields.get("msg"), str) and isinstance(fields.get("level"), str):
                return fields | {"role": role, "pid": pid}
    return _note(line.decode(errors="replace").rstrip(), role=role, pid=pid)


def to_json(fields: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(fields, default=str, option=orjson.OPT_NON_STR_KEYS)
    except orjson.JSONEncodeError:  # half a surrogate pair in a text, or something nested too deep
        return orjson.dumps({key: ascii(value)[:TEXT_CHARS_MAX] for key, value in fields.items()})


def human_line(fields: dict[str, Any], *, colour: bool) -> str:
    """time, level, role[pid], message, extra fields; a traceback below."""
    level = str(fields.get("level", "info"))
    who = f"{fields.get('role', '')}[{fields.get('pid', '')}]"
    extra = " ".join(f"{key}={value}" for key, value in fields.items() if key not in _KNOWN_KEYS)
    message = _plain(str(fields.get("msg", "")))
    at = _local_time(str(fields.get("ts", "")))
    if colour:
        shade = _COLOURS.get(level, "")
        line = f"{_DIM}{at}{_RESET} {shade}{level.upper():<8}{_RESET} {_DIM}{who:<19}{_RESET} {message}"
        line += f" {_DIM}{_plain(extra)}{_RESET}" if extra else ""
    else:
        line = f"{at} {level.upper():<8} {who:<19} {message}"
        line += f" {_plain(extra)}" if extra else ""
    if fields.get("trace"):
        line += "\n" + "\n".join("    " + _plain(each) for each in str(fields["trace"]).splitlines())
    return line


def _plain(text: str) -> str:
    """Without what would drive a terminal: log lines carry what endpoints answered."""
    return text if text.isprintable() else "".join(c if c.isprintable() else " " if c in "\n\t" else "?" for c in text)


def _note(message: str, *, role: str = "supervisor", pid: int | None = None) -> dict[str, Any]:
    return {
        "ts": _timestamp(time.time()),
        "level": "warning",
        "role": role,
        "pid": os.getpid() if pid is None else pid,
        "logger": "output",
        "msg": message,
    }


def _timestamp(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _local_time(timestamp: str) -> str:
    try:
        return datetime.fromisoformat(timestamp).astimezone().strftime("%H:%M:%S.%f")[:-3]
    except ValueError:
        return timestamp[:12]
