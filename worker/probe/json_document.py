"""A JSON document that counts how often it is touched, and what a JSON path finds in it.

A short path can ask for much: ``$..*..*`` on a deep document visits the square of its values, ``$[0,0][0,0]`` doubles
with each segment.  So the document counts how often it is touched (``_CountedObject``, ``_CountedArray``), whatever
part of the library does it, and ``TooMuchWorkError`` ends the evaluation at the bound (``allow_visits``).  ``match()``
and ``search()`` in filters are RE2's, whose time is linear; the text they look through counts as well.
"""

import functools
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, SupportsIndex

import orjson

from cluster.errors import InvalidInputError
from cluster.json_path import PATHS_KEPT, PATTERNS_KEPT, compile_path, compile_pattern

if TYPE_CHECKING:
    from jsonpath_rfc9535 import JSONPathEnvironment, JSONPathQuery

DEPTH_MAX = 90  # of a document; ``..`` of the library follows it down to 100
CONTAINERS_MAX = 100_000  # lists and maps; a megabyte of empty lists takes the interpreter for itself for long
STEPS_PER_VISIT = 512
COMPILING_VISITS = 1_000  # of a pattern that the document may have chosen: 3 ms at worst


class TooMuchWorkError(Exception):
    """The evaluation would visit more values than it may."""


class DocumentError(ValueError):
    """The text is not a JSON document that can be looked at; in words for people."""


class _Visits(threading.local):
    """How many more this thread may make."""

    left = 0

    def spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise TooMuchWorkError


_visits = _Visits()


class _CountedObject(dict[str, Any]):
    __slots__ = ()
    __hash__ = None

    def __getitem__(self, name: str) -> Any:
        _visits.spend(1)
        return dict.__getitem__(self, name)

    def items(self) -> Any:
        _visits.spend(len(self))
        return dict.items(self)

    def __eq__(self, other: object) -> bool:
        _visits.spend(len(self))
        return dict.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other


class _CountedArray(list[Any]):
    __slots__ = ()
    __hash__ = None

    def __getitem__(self, place: SupportsIndex | slice) -> Any:
        _visits.spend(len(range(*place.indices(len(self)))) if isinstance(place, slice) else 1)
        return list.__getitem__(self, place)

    def __iter__(self) -> Iterator[Any]:
        _visits.spend(len(self))
        return list.__iter__(self)

    def __eq__(self, other: object) -> bool:
        _visits.spend(len(self))
        return list.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other


def read_document(text: bytes) -> Any:
    """A document to look at with ``find_values``.  Raises DocumentError."""
    if text.count(b"[") + text.count(b"{") > CONTAINERS_MAX:  # those in texts are few enough to be counted as well
        raise DocumentError(f"JSON of more than {CONTAINERS_MAX} lists and maps")
    try:
        return _counted(orjson.loads(text), 0)
    except orjson.JSONDecodeError as error:
        raise DocumentError(f"not JSON: {error.msg} at character {error.pos}") from error


def _counted(value: Any, depth: int) -> Any:
    if not isinstance(value, (dict, list)):
        return value
    if depth >= DEPTH_MAX:
        raise DocumentError(f"JSON nested more than {DEPTH_MAX} deep")
    if isinstance(value, dict):
        return _CountedObject((name, _counted(each, depth + 1)) for name, each in value.items())
    if any(isinstance(each, (dict, list)) for each in value):
        return _CountedArray(_counted(each, depth + 1) for each in value)
    return _CountedArray(value)


def allow_visits(count: int) -> None:
    """How many the evaluations that follow in this thread may make, all together; a visit takes about 2 µs."""
    _visits.left = count


def find_values(path: str, document: Any) -> list[Any]:
    """What the path finds in a document of ``read_document``.  Raises TooMuchWorkError, as comparing may that, too."""
    return [node.value for node in _compiled(path).finditer(document)]


def found_in(pattern: str, text: str) -> bool:
    """Raises TooMuchWorkError."""
    return _is_found(compile_pattern(pattern), text, whole=False)


def _is_found(compiled: Any, text: str, *, whole: bool) -> bool:
    _visits.spend(len(text) * compiled.programsize // STEPS_PER_VISIT)
    found = (compiled.fullmatch if whole else compiled.search)(text.encode("utf-8", "replace"))
    return found is not None


@functools.lru_cache(maxsize=PATTERNS_KEPT)
def _pattern_of_a_filter(pattern: str) -> Any:
    """None: it is none, and finds nothing, says the RFC."""
    _visits.spend(COMPILING_VISITS + len(pattern))
    try:
        return compile_pattern(pattern)
    except InvalidInputError:
        return None


@functools.lru_cache(maxsize=PATHS_KEPT)
def _compiled(path: str) -> "JSONPathQuery":
    return compile_path(path, _environment())


@functools.lru_cache(maxsize=1)
def _environment() -> "JSONPathEnvironment":
    from jsonpath_rfc9535 import JSONPathEnvironment  # noqa: PLC0415 - see cluster.json_path
    from jsonpath_rfc9535.function_extensions import ExpressionType, FilterFunction  # noqa: PLC0415

    class PatternFunction(FilterFunction):
        """``match`` and ``search``."""

        arg_types = [ExpressionType.VALUE, ExpressionType.VALUE]  # noqa: RUF012 - the library's way
        return_type = ExpressionType.LOGICAL

        def __init__(self, *, whole: bool) -> None:
            self._whole = whole

        def __call__(self, text: object, pattern: object) -> bool:
            if not isinstance(text, str) or not isinstance(pattern, str):
                return False
            compiled = _pattern_of_a_filter(pattern)
            return compiled is not None and _is_found(compiled, text, whole=self._whole)

    environment = JSONPathEnvironment()
    environment.function_extensions["match"] = PatternFunction(whole=True)
    environment.function_extensions["search"] = PatternFunction(whole=False)
    return environment
