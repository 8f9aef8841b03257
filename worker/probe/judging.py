"""Whether an answer is what its project asserts.  Pure but for reading the wall clock, for a certificate's days.

``judge_for`` makes a ``Judge`` of a project's assertions; ``failures`` are the assertions that do not hold, each in
words with what was found instead, all of them and not only the first.

The body that is looked at is decoded: of a content encoding (gzip and deflate), never to more than ``limit_bytes``, and
to UTF-8 of a charset.  What can't be read fails the assertions about it, and says why.

The event loop must not be held up: ``failures_at_once`` gives up (None) where the answer or the patterns are large, or
when a JSON path turns out to be much work; then ``failures`` is for a thread (``JudgeThread``).  There the work is
bounded, too: RE2 is linear, and a path that visits too much fails its assertion.
"""

import asyncio
import codecs
import functools
import ssl
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import orjson

from cluster.assertions import (
    Assertion,
    BodyContains,
    BodyMatches,
    CertificateDays,
    HeaderIs,
    JsonPathIs,
    ResponseTimeBelow,
    StatusIn,
    assertion_line,
    concerns_body,
    decode_assertions,
    patterns_size,
)
from cluster.errors import InvalidInputError
from cluster.json_path import compile_pattern
from worker.probe.errors import MESSAGE_MAX, printable
from worker.probe.expected import parse_expected
from worker.probe.interface import ProbeOutcome
from worker.probe.json_document import (
    DocumentError,
    TooMuchWorkError,
    allow_visits,
    find_values,
    found_in,
    read_document,
)

JUDGES_KEPT = 4_096
LOOKED_AT_BYTES_MAX = 4 << 20  # of a body, whatever is read of it
AT_ONCE_BYTES = 16_384  # of an answer; JSON of that size is read in 5 ms at worst, as a rule in less than one
AT_ONCE_STEPS = 400_000  # bytes times instructions of patterns: 3 ms at worst
AT_ONCE_VISITS = 1_000  # 2 ms
VISITS_MAX = 100_000  # a fifth of a second, of a thread
THREADS = 2
ENCODINGS_MAX = 4
FOUND_CHARS_MAX = 80
ITEM_CHARS_MAX = 240
DAY_S = 86_400

# Those servers use; any other charset is read as UTF-8.  Codecs of Python that are no charsets must not be reached.
_CHARSET_PREFIXES = ("iso8859", "cp125", "koi8", "shift_jis", "euc_", "gb", "big5", "utf-16", "utf-32", "mac-roman")


class Unreadable(Exception):  # noqa: N818 - what the body is
    """In words for people."""


class Answer(msgspec.Struct, gc=False):
    """What is judged.  ``body``: as received, None when nobody asked for it; ``whole``: it is all there.
    ``limit_bytes``: of the body, as it is and decoded.

    ``certificate``: as ``ssl`` decodes it; empty: it was not verified; None: there was none.
    """

    status: int
    response_time_ms: float
    fields: list[tuple[str, str]]
    body: bytes | None
    whole: bool
    certificate: dict[str, Any] | None
    limit_bytes: int

    def header(self, name: str) -> str | None:
        """``name``: in lower case."""
        values = [value for field, value in self.fields if field.lower() == name]
        return ", ".join(values) if values else None

    @property
    def size(self) -> int:
        return len(self.body or b"") + sum(len(field) + len(value) for field, value in self.fields)


class Judge:
    def __init__(self, assertions: list[Assertion]) -> None:
        self._assertions = assertions
        self._patterns_size = patterns_size(assertions)
        self.needs_body = any(concerns_body(each) for each in assertions)

    def failures_at_once(self, answer: Answer) -> list[str] | None:
        """None: it is too much work for an event loop."""
        size = answer.size
        if size > AT_ONCE_BYTES or size * self._patterns_size > AT_ONCE_STEPS:
            return None
        if self.needs_body and answer.header("content-encoding"):
            return None  # it may become large
        allow_visits(AT_ONCE_VISITS)
        try:
            return self._failures(answer, too_much=None)
        except TooMuchWorkError:
            return None

    def failures(self, answer: Answer) -> list[str]:
        allow_visits(VISITS_MAX)
        return self._failures(answer, too_much=f"more work than is allowed: {VISITS_MAX} values visited")

    def _failures(self, answer: Answer, too_much: str | None) -> list[str]:
        body = _BodyReader(answer)
        failed = []
        for assertion in self._assertions:
            try:
                found = _found_instead(assertion, answer, body)
            except Unreadable as error:
                found = str(error)
            except TooMuchWorkError:
                if too_much is None:
                    raise
                found = too_much
            if found is not None:
                failed.append(_short(f"{assertion_line(assertion)}: {found}", ITEM_CHARS_MAX))
        return failed


@functools.lru_cache(maxsize=JUDGES_KEPT)
def judge_for(encoded: bytes) -> Judge:
    """Raises ValueError, in words for people."""
    try:
        return Judge(decode_assertions(encoded))
    except InvalidInputError as error:
        raise ValueError(str(error)) from error


def judged(outcome: ProbeOutcome, failures: list[str]) -> ProbeOutcome:
    """The outcome of a complete answer, and what was asserted of it and does not hold."""
    if not failures:
        return outcome
    many = len(failures) > 1
    message = f"{len(failures)} assertions failed: " if many else "assertion failed: "
    if outcome.error_message is not None:
        message = f"{outcome.error_message}; {message}"
    for number, failure in enumerate(failures):
        rest = len(failures) - number
        item = f"{'; ' if number else ''}{failure}"
        more = f"; and {rest} more"
        if len(message) + len(item) + (len(more) if rest > 1 else 0) > MESSAGE_MAX:
            message += more if number else _short(failure, MESSAGE_MAX - len(message) - len(more))
            break
        message += item
    return msgspec.structs.replace(
        outcome,
        status="failure",
        error_code=outcome.error_code or "assertion_failed",
        error_message=printable(message),
    )


class JudgeThread:
    """Evaluates what would hold up the loop.  To be used inside a running loop; threads start when first needed."""

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None

    def failures(self, judge: Judge, answer: Answer) -> asyncio.Future[list[str]]:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="judge")
        return asyncio.get_running_loop().run_in_executor(self._threads, judge.failures, answer)

    def close(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None


# ---- one assertion ---------------------------------------------------------------------------------------------------


def _found_instead(assertion: Assertion, answer: Answer, body: "_BodyReader") -> str | None:
    """None: it holds."""
    match assertion:
        case StatusIn(set=statuses):
            return None if answer.status in parse_expected(statuses) else f"got {answer.status}"
        case BodyContains(text=text):
            return None if text.encode() in body.text else body.missing()
        case BodyMatches(pattern=pattern):
            return None if compile_pattern(pattern).search(body.text) is not None else body.missing()
        case JsonPathIs():
            return _json_instead(assertion, find_values(assertion.path, body.document))
        case HeaderIs():
            return _header_instead(assertion, answer.header(assertion.name))
        case ResponseTimeBelow(ms=ms):
            return None if answer.response_time_ms < ms else f"took {answer.response_time_ms:.0f} ms"
        case CertificateDays(days=days):
            return _certificate_instead(days, answer.certificate)


def _json_instead(assertion: JsonPathIs, values: list[Any]) -> str | None:
    if assertion.op == "absent":
        return f"found {_shown_json(values[0])}" if values else None
    if not values:
        return "found nothing there"
    if assertion.op == "exists":
        return None
    holds = _JSON_OPS[assertion.op]
    other = next((value for value in values if not holds(value, assertion.value)), msgspec.UNSET)
    return None if other is msgspec.UNSET else f"found {_shown_json(other)}"


def _is_equal(found: Any, wanted: Any) -> bool:
    """As JSON has it: true is not 1."""
    if isinstance(found, bool) or isinstance(wanted, bool):
        return found is wanted
    if isinstance(found, list) and isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(_is_equal, found, wanted))
    if isinstance(found, dict) and isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(_is_equal(found[name], wanted[name]) for name in wanted)
    return bool(found == wanted)


def _in_order(holds: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    """Numbers with numbers, texts with texts; what is neither, or not of one kind, is in no order."""

    def compare(found: Any, wanted: Any) -> bool:
        if isinstance(found, str) or isinstance(wanted, str):
            return isinstance(found, str) and isinstance(wanted, str) and holds(found, wanted)
        return isinstance(found, int | float) and not isinstance(found, bool) and holds(found, wanted)

    return compare


def _contains(found: Any, wanted: Any) -> bool:
    if isinstance(found, str):
        return isinstance(wanted, str) and wanted in found
    return isinstance(found, list) and any(_is_equal(each, wanted) for each in found)


_JSON_OPS: dict[str, Callable[[Any, Any], bool]] = {
    "==": _is_equal,
    "!=": lambda found, wanted: not _is_equal(found, wanted),
    "<": _in_order(lambda found, wanted: found < wanted),
    "<=": _in_order(lambda found, wanted: found <= wanted),
    ">": _in_order(lambda found, wanted: found > wanted),
    ">=": _in_order(lambda found, wanted: found >= wanted),
    "contains": _contains,
    "matches": lambda found, wanted: isinstance(found, str) and found_in(wanted, found),
}


def _header_instead(assertion: HeaderIs, found: str | None) -> str | None:
    if found is None:
        return "there is no such header"
    if assertion.op == "==":
        holds = found == assertion.value
    elif assertion.op == "contains":
        holds = assertion.value in found
    else:
        text = found.encode("utf-8", "surrogateescape")
        holds = compile_pattern(assertion.value).search(text) is not None
    return None if holds else f"found {_shown_text(found)}"


def _certificate_instead(days: int, certificate: dict[str, Any] | None) -> str | None:
    if certificate is None:
        return "there was no TLS, so no certificate"
    if "notAfter" not in certificate:
        return "its end is not known, since the certificate is not verified"
    left = (ssl.cert_time_to_seconds(certificate["notAfter"]) - time.time()) / DAY_S
    return None if left >= days else f"valid for {left:.1f} days"


# ---- the body --------------------------------------------------------------------------------------------------------


class _BodyReader:
    """The body as text in UTF-8, and as a JSON document; each is made once.  Raises Unreadable."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._whole = answer.whole
        self._decoded = 0

    @functools.cached_property
    def text(self) -> bytes:
        answer = self._answer
        data = answer.body or b""
        names = (answer.header("content-encoding") or "").lower().split(",")
        encodings = [name.strip() for name in names if name.strip() not in {"", "identity"}]
        if len(encodings) > ENCODINGS_MAX:
            raise Unreadable(f"the body is encoded {len(encodings)} times")
        for name in reversed(encodings):
            if name not in {"gzip", "x-gzip", "deflate"}:
                raise Unreadable(f"the body is encoded as {_shown_text(name)}, which is not decoded here")
            data = _inflated(data, name, answer.limit_bytes, whole=answer.whole)
        charset = _charset(answer.header("content-type"))
        return data if charset is None else data.decode(charset, "replace").encode("utf-8", "replace")

    @functools.cached_property
    def document(self) -> Any:
        if not self._whole:
            raise Unreadable(f"the body is longer than {self._answer.limit_bytes} bytes, so its JSON is not complete")
        try:
            return read_document(self.text.removeprefix(codecs.BOM_UTF8))
        except DocumentError as error:
            raise Unreadable(f"the body is {error}" if self.text else "the body is empty") from error

    def missing(self) -> str:
        where = f"{len(self.text)} bytes" if self._whole else f"the first {len(self.text)} bytes"
        return f"not found in {where} ({_shown_text(self.text[:400].decode('utf-8', 'replace'))})"


def _inflated(data: bytes, name: str, limit_bytes: int, *, whole: bool) -> bytes:
    parts: list[bytes] = []
    left = limit_bytes
    wbits = zlib.MAX_WBITS | 32 if name != "deflate" or data[:1] == b"\x78" else -zlib.MAX_WBITS
    try:
        while data:
            stream = zlib.decompressobj(wbits)
            part = stream.decompress(data, left + 1)
            left -= len(part)
            if left < 0:
                raise Unreadable(f"the body is larger than {limit_bytes} bytes when decoded")
            parts.append(part)
            if not stream.eof and whole:
                raise Unreadable(f"the body is no complete {name} data")
            data = stream.unused_data
            if not data.startswith(b"\x1f\x8b"):  # the members of a gzip file follow each other; all else is padding
                break
    except zlib.error as error:
        raise Unreadable(f"the body is no {name} data: {error}") from error
    return b"".join(parts)


def _charset(content_type: str | None) -> str | None:
    """The codec of a body that is not in UTF-8."""
    for parameter in (content_type or "").split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            try:
                codec = codecs.lookup(value.strip().strip('"')[:40]).name
            except (LookupError, ValueError):
                return None
            return codec if codec.startswith(_CHARSET_PREFIXES) else None
    return None


# ---- words -----------------------------------------------------------------------------------------------------------


def _shown_json(value: Any) -> str:
    return _short(orjson.dumps(value).decode(), FOUND_CHARS_MAX)


def _shown_text(text: str) -> str:
    return _short(repr(text[: 2 * FOUND_CHARS_MAX]), FOUND_CHARS_MAX)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
