"""What a project asserts of an answer, beyond its status: the forms it is written in, and their rules.  Pure.

The written form is a JSON list of maps (column ``assertions``, admin ``add``, import and export)::

    [{"type": "body_contains", "text": "ok"}, {"type": "response_time_below", "ms": 500}]

and one line each on a command line: ``body contains ok``, ``time < 500ms``.  ``validate_assertions`` makes the
canonical list of one that people wrote; ``decode_assertions`` reads what that made.  What can't be evaluated is
refused here, with InvalidInputError naming the assertion, so that the evaluation (worker/probe/judging.py) can't fail.

All assertions of a project must hold.  Regular expressions are RE2's, and JSON paths those of RFC 9535, with a bound on
their work (worker/probe/json_document.py).
"""

import functools
import re
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, cast

import msgspec
import orjson

from cluster.errors import InvalidInputError
from cluster.json_path import PATTERN_PROGRAM_MAX, check_path, compile_pattern

ASSERTIONS_MAX = 50
TEXT_CHARS_MAX = 1_000
VALUE_BYTES_MAX = 4_096
HEADER_NAME_CHARS_MAX = 256
RESPONSE_TIME_MS_MAX = 600_000
CERTIFICATE_DAYS_MAX = 36_500
VALIDATED_KEPT = 4_096

JsonOp: TypeAlias = Literal["exists", "absent", "==", "!=", "<", "<=", ">", ">=", "contains", "matches"]
HeaderOp: TypeAlias = Literal["==", "contains", "matches"]

_JSON_OPS = frozenset({"exists", "absent", "==", "!=", "<", "<=", ">", ">=", "contains", "matches"})
_ORDER_OPS = frozenset({"<", "<=", ">", ">="})
_STATUS_SET = re.compile(
    r"\s*([1-5]xx|[1-5]\d\d(\s*-\s*[1-5]\d\d)?)(\s*,\s*([1-5]xx|[1-5]\d\d(\s*-\s*[1-5]\d\d)?))*\s*"
)
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_LINE = re.compile(r"\s*([a-z]+)(?:\s+(.*?))?\s*", re.DOTALL)
_DURATION = re.compile(r"<\s*([0-9]{1,9})\s*(ms|s)?")
_DAYS = re.compile(r">=?\s*([0-9]{1,9})\s*d(?:ays?)?")
_HEADER_LINE = re.compile(r"(\S+)\s+(==|contains|matches)\s+(.*)", re.DOTALL)
_BODY_LINE = re.compile(r"(contains|matches)\s+(.*)", re.DOTALL)
_JSON_OP_LINE = re.compile(r"(\S+)(?:\s+(.*))?", re.DOTALL)

LINE_FORMS = (
    "'status 2xx', 'body contains TEXT', 'body matches REGEX', 'json PATH == VALUE', 'header NAME matches REGEX', "
    "'time < 500ms' or 'certificate > 14d'"
)


class StatusIn(msgspec.Struct, tag="status", frozen=True, forbid_unknown_fields=True):
    set: str


class BodyContains(msgspec.Struct, tag="body_contains", frozen=True, forbid_unknown_fields=True):
    text: str


class BodyMatches(msgspec.Struct, tag="body_matches", frozen=True, forbid_unknown_fields=True):
    pattern: str


class JsonPathIs(msgspec.Struct, tag="json_path", frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Every value that the path finds, and one at least (``absent``: none)."""

    path: str
    op: JsonOp = "exists"
    value: Any = msgspec.UNSET


class HeaderIs(msgspec.Struct, tag="header", frozen=True, forbid_unknown_fields=True):
    """A header that came several times is its values, joined with ', '."""

    name: str
    op: HeaderOp
    value: str


class ResponseTimeBelow(msgspec.Struct, tag="response_time_below", frozen=True, forbid_unknown_fields=True):
    ms: int


class CertificateDays(msgspec.Struct, tag="certificate_days", frozen=True, forbid_unknown_fields=True):
    """Valid for at least so many days from now."""

    days: int


Assertion: TypeAlias = (
    StatusIn | BodyContains | BodyMatches | JsonPathIs | HeaderIs | ResponseTimeBelow | CertificateDays
)
TYPES = tuple(str(each.__struct_config__.tag) for each in Assertion.__args__)

_decode = msgspec.json.Decoder(list[Assertion]).decode
_encode = msgspec.json.Encoder().encode


def validate_assertions(written: Any) -> list[Assertion]:
    """The canonical form of a decoded JSON list."""
    if not isinstance(written, list):
        raise InvalidInputError(f"assertions: must be a list of maps or null, not {_shown(written)}")
    if len(written) > ASSERTIONS_MAX:
        raise InvalidInputError(f"assertions: must be at most {ASSERTIONS_MAX}, not {len(written)}")
    assertions = [_validated(each, f"assertions: number {number}") for number, each in enumerate(written, start=1)]
    size = patterns_size(assertions)
    if size > PATTERN_PROGRAM_MAX:
        raise InvalidInputError(
            f"assertions: the regular expressions are too large together: {size} instructions of at most "
            f"{PATTERN_PROGRAM_MAX}; repeat less in them"
        )
    return assertions


def encode_assertions(assertions: list[Assertion]) -> bytes | None:
    """As workers get them; None: there are none."""
    return _encode(assertions) if assertions else None


def canonical_assertions(column: str | list[Any]) -> bytes | None:
    """What the column holds, JSON text or the decoded list, as workers get it.  Raises InvalidInputError."""
    return _canonical_text(column) if isinstance(column, str) else encode_assertions(validate_assertions(column))


@functools.lru_cache(maxsize=VALIDATED_KEPT)
def _canonical_text(text: str) -> bytes | None:
    try:
        written = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidInputError(f"assertions: not JSON: {error}") from error
    return None if written is None else encode_assertions(validate_assertions(written))


def decode_assertions(encoded: bytes) -> list[Assertion]:
    """What ``encode_assertions`` made; raises ValueError when it is something else."""
    return _decode(encoded)


def pattern_of(assertion: Assertion) -> str | None:
    match assertion:
        case BodyMatches(pattern=pattern):
            return pattern
        case JsonPathIs(op="matches", value=pattern) | HeaderIs(op="matches", value=pattern):
            return str(pattern)
    return None


def patterns_size(assertions: list[Assertion]) -> int:
    """Instructions of all regular expressions together: the steps that a byte of the answer may take."""
    patterns = (pattern for each in assertions if (pattern := pattern_of(each)) is not None)
    return sum(compile_pattern(pattern).programsize for pattern in patterns)


def concerns_body(assertion: Assertion) -> bool:
    return isinstance(assertion, BodyContains | BodyMatches | JsonPathIs)


# ---- maps ------------------------------------------------------------------------------------------------------------


def _validated(written: Any, where: str) -> Assertion:
    if not isinstance(written, dict):
        raise InvalidInputError(f"{where}: must be a map with a type, not {_shown(written)}")
    if written.get("type") not in TYPES:
        raise InvalidInputError(f"{where}: type must be {', '.join(TYPES)}, not {_shown(written.get('type'))}")
    try:
        assertion: Assertion = msgspec.convert(written, Assertion)
    except msgspec.ValidationError as error:
        raise InvalidInputError(f"{where} ({written['type']}): {str(error)[:200]}") from error
    try:
        return _checked(assertion)
    except InvalidInputError as error:
        raise InvalidInputError(f"{where} ({written['type']}): {error}") from error


def _checked(assertion: Assertion) -> Assertion:
    match assertion:
        case StatusIn(set=statuses):
            return StatusIn(_valid_status_set(statuses))
        case BodyContains(text=text):
            _expect_text("text", text)
        case BodyMatches(pattern=pattern):
            _expect_pattern("pattern", pattern)
        case JsonPathIs():
            _expect_json_path(assertion)
        case HeaderIs(name=name, op=op, value=value):
            if not _HEADER_NAME.fullmatch(name) or len(name) > HEADER_NAME_CHARS_MAX:
                raise InvalidInputError(f"name: {_shown(name)} is not a header name")
            if op == "matches":
                _expect_pattern("value", value)
            elif _CONTROL.search(value):
                raise InvalidInputError("value: a header has neither line ends nor control characters")
            else:
                _expect_text("value", value, empty=op == "==")
            return HeaderIs(name.lower(), op, value)
        case ResponseTimeBelow(ms=ms):
            _expect_range("ms", ms, RESPONSE_TIME_MS_MAX)
        case CertificateDays(days=days):
            _expect_range("days", days, CERTIFICATE_DAYS_MAX)
    return assertion


def _valid_status_set(written: str) -> str:
    compact = re.sub(r"\s+", "", written.lower())
    ranges = (part.split("-") for part in compact.split(",") if "-" in part)
    if (
        not _STATUS_SET.fullmatch(compact)
        or len(compact) > TEXT_CHARS_MAX
        or any(last < first for first, last in ranges)
    ):
        raise InvalidInputError(f"set: must be like 200, 2xx or 200-299,301, not {_shown(written)}")
    return compact


def _expect_json_path(assertion: JsonPathIs) -> None:
    _expect_text("path", assertion.path)
    try:
        check_path(assertion.path)
    except InvalidInputError as error:
        raise InvalidInputError(f"path: {error}") from error
    op, value = assertion.op, assertion.value
    if op in {"exists", "absent"}:
        if value is not msgspec.UNSET:
            raise InvalidInputError(f"value: leave it out, {op} compares with nothing")
        return
    if value is msgspec.UNSET:
        raise InvalidInputError(f"value: is required with {op}")
    if op in _ORDER_OPS and (isinstance(value, bool) or not isinstance(value, int | float | str)):
        raise InvalidInputError(f"value: {op} compares numbers or texts, not {_shown(value)}")
    if op == "matches":
        if not isinstance(value, str):
            raise InvalidInputError(f"value: must be a regular expression, not {_shown(value)}")
        _expect_pattern("value", value)
    try:
        text = orjson.dumps(value)
    except orjson.JSONEncodeError as error:
        raise InvalidInputError(f"value: {_shown(value)} can't be written as JSON: {error}") from error
    if len(text) > VALUE_BYTES_MAX:
        raise InvalidInputError(f"value: must be at most {VALUE_BYTES_MAX} bytes of JSON, not {len(text)}")
    if orjson.loads(text) != value:
        raise InvalidInputError(f"value: {_shown(value)} is not a value that JSON has")
    if b"\\u0000" in text:
        raise InvalidInputError("value: must not contain NUL")  # jsonb has none


def _expect_text(name: str, text: str, *, empty: bool = False) -> None:
    if not (empty or text) or len(text) > TEXT_CHARS_MAX:
        raise InvalidInputError(f"{name}: must be 1 to {TEXT_CHARS_MAX} characters, not {len(text)}")
    if "\x00" in text:
        raise InvalidInputError(f"{name}: must not contain NUL")  # jsonb has none
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInputError(f"{name}: is not valid Unicode") from None


def _expect_pattern(name: str, pattern: str) -> None:
    _expect_text(name, pattern)
    try:
        compile_pattern(pattern)
    except InvalidInputError as error:
        raise InvalidInputError(f"{name}: {error}") from error


def _expect_range(name: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise InvalidInputError(f"{name}: must be from 1 to {most}, not {value}")


# ---- lines -----------------------------------------------------------------------------------------------------------


def parse_assertion(line: str) -> Assertion:
    """An assertion as written on a command line.  Texts stand as they are, or in quotes as JSON has them."""
    found = _LINE.fullmatch(line)
    read = None if found is None else _READERS.get(found[1])
    if found is None or read is None:
        raise InvalidInputError(f"assert: must be {LINE_FORMS}, not {_shown(line)}")
    try:
        return _checked(read(found[2] or ""))
    except InvalidInputError as error:
        raise InvalidInputError(f"assert: in {_shown(line)}: {error}") from error


def assertion_line(assertion: Assertion) -> str:
    """What ``parse_assertion`` would read it from."""
    match assertion:
        case StatusIn(set=statuses):
            return f"status {statuses}"
        case BodyContains(text=text):
            return f"body contains {_quoted(text)}"
        case BodyMatches(pattern=pattern):
            return f"body matches {_quoted(pattern)}"
        case JsonPathIs(path=path, op=op, value=value):
            if value is msgspec.UNSET:
                return f"json {path} {op}"
            return f"json {path} {op} {_quoted(value) if op == 'matches' else orjson.dumps(value).decode()}"
        case HeaderIs(name=name, op=op, value=value):
            return f"header {name} {op} {_quoted(value)}"
        case ResponseTimeBelow(ms=ms):
            return f"time < {ms}ms"
        case CertificateDays(days=days):
            return f"certificate > {days}d"


def _read_body(rest: str) -> Assertion:
    found = _BODY_LINE.fullmatch(rest)
    if not found:
        raise InvalidInputError("write 'body contains TEXT' or 'body matches REGEX'")
    text = _unquoted(found[2])
    return BodyContains(text) if found[1] == "contains" else BodyMatches(text)


def _read_json(rest: str) -> Assertion:
    end = _end_of_path(rest)
    path, tail = rest[:end], rest[end:].strip()
    found = _JSON_OP_LINE.fullmatch(tail or "exists")
    if not path or not found or found[1] not in _JSON_OPS:
        raise InvalidInputError(f"write 'json PATH OP VALUE' with an OP of {', '.join(sorted(_JSON_OPS))}")
    op, value = cast("JsonOp", found[1]), found[2]
    if value is None:
        return JsonPathIs(path, op)
    if op == "matches":
        return JsonPathIs(path, op, _unquoted(value))
    try:
        return JsonPathIs(path, op, orjson.loads(value))
    except ValueError as error:
        raise InvalidInputError(
            f'the value {_shown(value)} is not JSON: texts stand in quotes, as in == "ok"'
        ) from error


def _end_of_path(text: str) -> int:
    """The first space that is neither in brackets nor in quotes."""
    depth = 0
    quote = ""
    escaped = False
    for at, character in enumerate(text):
        if escaped:
            escaped = False
        elif quote:
            escaped = character == "\\"
            quote = "" if character == quote else quote
        elif character in {'"', "'"}:
            quote = character
        elif character in "[(":
            depth += 1
        elif character in "])":
            depth -= 1
        elif character.isspace() and depth <= 0:
            return at
    return len(text)


def _read_header(rest: str) -> Assertion:
    found = _HEADER_LINE.fullmatch(rest)
    if not found:
        raise InvalidInputError("write 'header NAME == VALUE', or with contains or matches")
    return HeaderIs(found[1].rstrip(":"), cast("HeaderOp", found[2]), _unquoted(found[3]))


def _read_time(rest: str) -> Assertion:
    found = _DURATION.fullmatch(rest)
    if not found:
        raise InvalidInputError("write 'time < 500ms' or 'time < 2s'")
    return ResponseTimeBelow(int(found[1]) * (1_000 if found[2] == "s" else 1))


def _read_certificate(rest: str) -> Assertion:
    found = _DAYS.fullmatch(rest)
    if not found:
        raise InvalidInputError("write 'certificate > 14d'")
    return CertificateDays(int(found[1]))


_READERS: dict[str, Callable[[str], Assertion]] = {
    "status": StatusIn,
    "body": _read_body,
    "json": _read_json,
    "header": _read_header,
    "time": _read_time,
    "certificate": _read_certificate,
}


def _unquoted(text: str) -> str:
    if text.startswith('"'):
        try:
            decoded = orjson.loads(text)
        except orjson.JSONDecodeError:
            return text
        if isinstance(decoded, str):
            return decoded
    return text


def _quoted(text: str) -> str:
    plain = text and text == text.strip() and text[0] != '"' and text.isprintable()
    return text if plain else orjson.dumps(text).decode()


def _shown(value: object) -> str:
    return ascii(value if not isinstance(value, str) else value[:100])[:120]
