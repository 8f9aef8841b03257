"""Conditions of Gatus (``[STATUS] == 200``) as expected statuses and assertions.  Pure.

Gatus compares texts and whole numbers; a condition is two sides with ``==``, ``!=``, ``<``, ``<=``, ``>`` or ``>=``
between, in spaces.  ringpoll has no assertion that says what must not be found, so most ``!=`` are not mapped.
"""

import functools
import re
from collections.abc import Callable
from typing import Any, Literal

import msgspec
import orjson

from cluster.assertions import CERTIFICATE_DAYS_MAX, validate_assertions
from cluster.errors import InvalidInputError
from cluster.interchange.go_durations import duration_ms
from cluster.interchange.model import shown
from cluster.interchange.status_sets import FINAL_STATUSES, STATUSES

Operator = Literal["==", "!=", "<=", ">=", ">", "<"]
OPERATORS: tuple[Operator, ...] = ("==", "!=", "<=", ">=", ">", "<")  # in the order in which Gatus looks for them
_FLIPPED: dict[Operator, Operator] = {"==": "==", "!=": "!=", "<=": ">=", ">=": "<=", ">": "<", "<": ">"}
_DAY_MS = 86_400_000
_FUNCTION = re.compile(r"(len|has|age|pat|any)\((.*)\)", re.DOTALL)
_INTEGER = re.compile(r"[-+]?(0x[0-9A-Fa-f]+|0b[01]+|0o?[0-7]*|[1-9][0-9]*)")
_NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]+)?")
_STEP = re.compile(r"\[([0-9]{1,9}|\*)\]")
_LENGTH_MAX = 100_000
CONDITIONS_KEPT = 4_096  # most endpoints have the same ones

CONDITIONS = {
    "[STATUS]": "`expected_status`: the statuses for which all these conditions hold. Without one, any status",
    "[RESPONSE_TIME]": "`response_time_below`; `>` and `>=` are not mapped",
    "[CERTIFICATE_EXPIRATION]": "`certificate_days`, rounded up to whole days; `<` and `<=` are not mapped",
    "[BODY] ==": "`body_matches`, `pat(*text*)` `body_contains`; `!=` and orders are not mapped",
    "[BODY].path": "`json_path` with the same comparison, `pat()` and `any()` as `matches`. "
    "Texts and numbers are told apart",
    "len([BODY].path)": "`json_path`: whether the list has an element at that place; lengths of texts are not mapped",
    "has([BODY].path)": "`json_path` with `exists` or `absent`",
    "[HEADER].name": "`header`; `!=` is not mapped",
    "[CONNECTED]": "`== true` holds whenever there is an answer; `== false` can't be asked for",
    "[IP]": "not mapped: `remote_address` of each result says it",
    "[DNS_RCODE]": "not mapped: ringpoll polls HTTP only",
    "[DOMAIN_EXPIRATION]": "not mapped: ringpoll asks no registry of domains",
    "[CONTEXT].path": "not mapped: ringpoll has no chain of requests",
    "age()": "not mapped: no assertion compares with the time",
}


class ConditionMade(msgspec.Struct, frozen=True):
    """``statuses``: to which it limits them; ``lost``: why it is not mapped; ``note``: what is not quite the same."""

    statuses: frozenset[int] | None = None
    assertions: tuple[dict[str, Any], ...] = ()
    note: str | None = None
    lost: str | None = None
    impossible: bool = False  # the endpoint is healthy when it can't be reached


@functools.lru_cache(maxsize=CONDITIONS_KEPT)
def read_condition(written: str) -> ConditionMade:
    """Raises InvalidInputError when it is no condition."""
    left, op, right = _sides(written)
    if not _is_placeholder(left) and _is_placeholder(right):
        left, op, right = right, _FLIPPED[op], left
    made = _made(left, op, right)
    if made.assertions:
        try:
            validate_assertions(list(made.assertions))
        except InvalidInputError as error:
            return ConditionMade(lost=str(error))
    return made


def _sides(written: str) -> tuple[str, Operator, str]:
    for op in OPERATORS:
        left, found, right = written.partition(f" {op} ")
        if found:
            return left.strip(), op, right.strip()
    raise InvalidInputError(f"{shown(written)} is no condition such as [STATUS] == 200")


def _is_placeholder(side: str) -> bool:
    function = _FUNCTION.fullmatch(side)
    return side.startswith("[") or (function is not None and function[1] in {"len", "has", "age"})


def _made(left: str, op: Operator, right: str) -> ConditionMade:
    function = _FUNCTION.fullmatch(left)
    name, inner = (function[1], function[2].strip()) if function is not None else ("", left)
    upper = inner.upper()
    if name == "age":
        return ConditionMade(lost="no assertion compares with the time")
    if upper.startswith("[BODY]"):
        return _body(name, inner[len("[BODY]") :], op, right)
    if upper.startswith("[HEADER]."):
        return _header(name, inner[len("[HEADER].") :], op, right)
    if name:
        return ConditionMade(lost=f"{name}() is mapped of [BODY] only")
    match upper:
        case "[STATUS]":
            asked = STATUSES if op == "==" else FINAL_STATUSES
            return ConditionMade(statuses=frozenset(each for each in asked if _holds(str(each), op, right)))
        case "[RESPONSE_TIME]":
            return _response_time(op, right)
        case "[CERTIFICATE_EXPIRATION]":
            return _certificate(op, right)
        case "[CONNECTED]":
            if (op, right.lower()) in {("==", "true"), ("!=", "false")}:
                return ConditionMade()
            return ConditionMade(lost="an endpoint that can't be reached is never a success", impossible=True)
        case "[IP]":
            return ConditionMade(lost="which address answers is not asserted; remote_address of a result says it")
        case "[DNS_RCODE]":
            return ConditionMade(lost="ringpoll polls HTTP only")
        case "[DOMAIN_EXPIRATION]":
            return ConditionMade(lost="ringpoll asks no registry of domains")
    if upper.startswith("[CONTEXT]"):
        return ConditionMade(lost="ringpoll has no chain of requests")
    return ConditionMade(lost=f"{shown(left)} is not a placeholder that this import knows")


# ---- comparisons as Gatus makes them ---------------------------------------------------------------------------------


def _integer(text: str) -> int | None:
    if not _INTEGER.fullmatch(text) or len(text) > 20:
        return None
    sign, digits = (-1 if text.startswith("-") else 1), text.lstrip("+-")
    octal = digits.startswith("0") and digits[1:].isdigit()
    return sign * (int(digits, 8) if octal else int(digits, 0))


def _amount(text: str) -> float:
    """What an order compares with: a duration is milliseconds, what is no number is 0."""
    if (whole := _integer(text)) is not None:
        return whole
    if _NUMBER.fullmatch(text):
        return int(float(text))
    try:
        return duration_ms(text)
    except InvalidInputError:
        return 0


def _holds(value: str, op: Operator, right: str) -> bool:
    if op in {"==", "!="}:
        return _equal(value, right) is (op == "==")
    first, second = _amount(value), _amount(right)
    compare: dict[str, Callable[[], bool]] = {
        "<=": lambda: first <= second,
        ">=": lambda: first >= second,
        ">": lambda: first > second,
        "<": lambda: first < second,
    }
    return compare[op]()


def _equal(value: str, right: str) -> bool:
    function = _FUNCTION.fullmatch(right)
    if function is not None and function[1] == "pat":
        try:
            return re.fullmatch(glob_pattern(function[2]), value, re.DOTALL) is not None
        except re.error:
            return False
    if function is not None and function[1] == "any":
        return value in _options(function[2])
    first, second = _integer(value), _integer(right)
    return first == second if first is not None and second is not None else value == right


def _options(inside: str) -> list[str]:
    return [each.strip() for each in inside.split(",")]


def glob_pattern(glob: str) -> str:
    """A regular expression, not anchored, for what ``pat()`` matches as a whole."""
    made, at = "", 0
    while at < len(glob):
        character = glob[at]
        at += 1
        if character == "*":
            made += ".*" if not made.endswith(".*") else ""
        elif character == "?":
            made += "."
        elif character == "\\" and at < len(glob):
            made += re.escape(glob[at])
            at += 1
        elif character == "[" and (end := glob.find("]", at + 1)) > 0:
            inside = glob[at:end].replace("\\", "\\\\").replace("[", "\\[")
            made += f"[{inside}]"
            at = end + 1
        else:
            made += re.escape(character)
    return made


def _text_pattern(right: str, around: str = "") -> str:
    """Anchored, for a text that equals the right side; ``around``: what may stand before and behind."""
    function = _FUNCTION.fullmatch(right)
    if function is not None and function[1] == "pat":
        inner = glob_pattern(function[2])
        open_begin, open_end = inner.startswith(".*"), inner.endswith(".*")
        inner = inner.removeprefix(".*").removesuffix(".*")
        return ("(?s)" if "." in inner else "") + (
            ("" if open_begin else rf"\A{around}") + inner + ("" if open_end else rf"{around}\z")
        )
    options = _options(function[2]) if function is not None and function[1] == "any" else [right]
    return rf"\A{around}(?:{'|'.join(re.escape(each) for each in options)}){around}\z"


def _is_function(right: str) -> bool:
    function = _FUNCTION.fullmatch(right)
    return function is not None and function[1] in {"pat", "any"}


def _plain_contained(right: str) -> str | None:
    """The text of ``pat(*text*)``."""
    function = _FUNCTION.fullmatch(right)
    if function is None or function[1] != "pat":
        return None
    found = re.fullmatch(r"\*([^*?\[\\]+)\*", function[2], re.DOTALL)
    return None if found is None else found[1]


# ---- placeholders ----------------------------------------------------------------------------------------------------


def _response_time(op: Operator, right: str) -> ConditionMade:
    limit = int(_amount(right)) + (1 if op == "<=" else 0)  # Gatus compares whole milliseconds, cut
    if op not in {"<", "<="}:
        return ConditionMade(lost="only an upper limit of the response time is asserted")
    if limit < 1:
        return ConditionMade(lost="no answer takes less than nothing")
    return ConditionMade(assertions=({"type": "response_time_below", "ms": limit},))


def _certificate(op: Operator, right: str) -> ConditionMade:
    if op not in {">", ">="}:
        return ConditionMade(lost="only a least validity of the certificate is asserted")
    amount = _amount(right)
    days = max(1, -int(-amount // _DAY_MS))
    if days > CERTIFICATE_DAYS_MAX:
        return ConditionMade(lost=f"more than {CERTIFICATE_DAYS_MAX} days")
    note = None if amount == days * _DAY_MS else f"rounded up to {days} whole days"
    return ConditionMade(assertions=({"type": "certificate_days", "days": days},), note=note)


def _header(function: str, name: str, op: Operator, right: str) -> ConditionMade:
    note = "of a header that comes several times, Gatus takes the first and ringpoll all, joined"
    if function == "has" and (op, right) in {("==", "true"), ("!=", "false")}:
        return ConditionMade(assertions=({"type": "header", "name": name, "op": "matches", "value": ".*"},))
    if function or op != "==":
        return ConditionMade(lost="of a header, only that it has a value, or which, is asserted")
    if (contained := _plain_contained(right)) is not None:
        return ConditionMade(
            assertions=({"type": "header", "name": name, "op": "contains", "value": contained},), note=note
        )
    if _is_function(right):
        pattern = _text_pattern(right)
        return ConditionMade(
            assertions=({"type": "header", "name": name, "op": "matches", "value": pattern},), note=note
        )
    return ConditionMade(assertions=({"type": "header", "name": name, "op": "==", "value": right},), note=note)


def _body(function: str, path: str, op: Operator, right: str) -> ConditionMade:
    if not path and function != "len":
        return _whole_body(function, op, right)
    try:
        json_path = gatus_path(path)
    except InvalidInputError as error:
        return ConditionMade(lost=str(error))
    match function:
        case "has":
            return _has(json_path, op, right)
        case "len":
            return _length(json_path, op, right)
    return _json_value(json_path, op, right)


def _whole_body(function: str, op: Operator, right: str) -> ConditionMade:
    if function == "has":
        if (op, right) in {("==", "true"), ("!=", "false")}:
            return ConditionMade(assertions=({"type": "body_matches", "pattern": r"\S"},))
        return ConditionMade(assertions=({"type": "body_matches", "pattern": r"\A\s*\z"},))
    if op != "==":
        return ConditionMade(lost="there is no assertion of what a body must not be")
    if (contained := _plain_contained(right)) is not None:
        return ConditionMade(assertions=({"type": "body_contains", "text": contained},))
    return ConditionMade(assertions=({"type": "body_matches", "pattern": _text_pattern(right, r"\s*")},))


def gatus_path(path: str) -> str:
    """``.data[0].user-name`` as a JSON path of RFC 9535."""
    made = "$"
    for key in path.removeprefix(".").split("."):
        name, bracket, rest = key.partition("[")
        if name:
            made += f".{name}" if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) else f"[{_quoted(name)}]"
        steps = bracket + rest
        while steps:
            step = _STEP.match(steps)
            if step is None:
                raise InvalidInputError(f"{shown(path)} is not a path that can be read")
            made += step[0]
            steps = steps[step.end() :]
    return made


def _quoted(name: str) -> str:
    return orjson.dumps(name).decode()


def _has(path: str, op: Operator, right: str) -> ConditionMade:
    if (op, right) in {("==", "true"), ("!=", "false")}:
        return ConditionMade(assertions=({"type": "json_path", "path": path, "op": "exists"},))
    if (op, right) in {("==", "false"), ("!=", "true")}:
        return ConditionMade(assertions=({"type": "json_path", "path": path, "op": "absent"},))
    return ConditionMade(lost="has() is compared with true or false")


def _length(path: str, op: Operator, right: str) -> ConditionMade:
    size = _integer(right)
    if size is None or not 0 <= size <= _LENGTH_MAX or op == "!=":
        return ConditionMade(lost="no assertion says this of a length")
    least = {"==": size, ">=": size, ">": size + 1}.get(op, 0)
    most = {"==": size, "<=": size, "<": size - 1}.get(op)
    made = []
    if least > 0:
        made.append({"type": "json_path", "path": f"{path}[{least - 1}]", "op": "exists"})
    if most is not None:
        if most < 0:
            return ConditionMade(lost="no length is below 0")
        made.append({"type": "json_path", "path": f"{path}[{most}]", "op": "absent"})
    note = "counts the elements of a list; the length of a text or of a map would fail or go unnoticed"
    return ConditionMade(assertions=tuple(made), note=note)


def _json_value(path: str, op: Operator, right: str) -> ConditionMade:
    notes = ["an element that lacks the value is passed over"] if "[*]" in path else []
    if op in {"==", "!="} and _is_function(right):
        if op == "!=":
            return ConditionMade(lost="there is no assertion of what a value must not match")
        notes.append("of texts only: a number never matches")
        value: Any = _text_pattern(right)
        return ConditionMade(
            assertions=({"type": "json_path", "path": path, "op": "matches", "value": value},), note="; ".join(notes)
        )
    if op in {"==", "!="}:
        value = _typed(right)
        if not isinstance(value, str):
            notes.append(f"Gatus would take the text {shown(right)} for it, too")
        if op == "!=":
            notes.append("where the value is missing, it fails")
    else:
        value = _amount(right)
        value = int(value) if value == int(value) else value
        notes.append("Gatus cuts fractions before it compares")
    assertion = {"type": "json_path", "path": path, "op": op, "value": value}
    return ConditionMade(assertions=(assertion,), note="; ".join(notes) or None)


def _typed(text: str) -> Any:
    """A text of a condition as the value that JSON has for it."""
    if text in {"true", "false"}:
        return text == "true"
    if (whole := _integer(text)) is not None:
        return whole
    return float(text) if _NUMBER.fullmatch(text) else text
