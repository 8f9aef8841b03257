"""YAML documents with line numbers, read from PyYAML's safe events; and written.  Pure.

A map is a ``YamlMap`` with the line it begins in, a list a ``YamlList``.  ``texts``: scalars stay the text that is
written, and only null is told apart, for files whose readers know the type of each field (Go programs decode ``name:
123`` as text and ``port: "80"`` as a number).  Otherwise numbers and true or false are those of YAML 1.2: ``on`` is a
text, ``010`` is ten.

Bounds: aliases are shared and never copied, but count with all they stand for, so that a few lines can't stand for
billions; nesting is bounded.  Tags other than those of JSON's types are refused, so are a key given twice, an alias
within its own anchor and a second document.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from cluster.errors import InvalidInputError
from cluster.interchange.model import shown

DEPTH_MAX = 100
ALIASED_MAX = 10_000_000  # nodes, and hundreds of characters, that aliases stand for
NODES_MAX = 20_000_000

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE = frozenset({"true", "True", "TRUE"})
_FALSE = frozenset({"false", "False", "FALSE"})
_INTEGER = re.compile(r"[-+]?[0-9]{1,4000}")
_HEX = re.compile(r"0x[0-9A-Fa-f]{1,4000}")
_OCTAL = re.compile(r"0o[0-7]{1,4000}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,5})?")
_TAG = "tag:yaml.org,2002:"
_KNOWN_TAGS = frozenset(f"{_TAG}{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq")) | {"!"}


class YamlMap(dict[str, Any]):
    __slots__ = ("line",)
    line: int


class YamlList(list[Any]):
    __slots__ = ("line",)
    line: int


def line_of(value: object) -> int | None:
    return value.line if isinstance(value, YamlMap | YamlList) else None


def read_yaml(text: str, where: str, *, texts: bool = False) -> Any:
    """The one document; None for an empty file.  Raises InvalidInputError with the line."""
    try:
        return _Composer(yaml.parse(text, Loader=_LOADER), where, texts).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark is not None else ""
        why = " ".join(part for part in (error.context, error.problem) if part)
        raise InvalidInputError(f"{where}: {line}not YAML: {why}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InvalidInputError(f"{where}: not YAML: {str(error)[:200]}") from error


class _Composer:
    def __init__(self, events: Iterator[Any], where: str, texts: bool) -> None:
        self._events = events
        self._where = where
        self._texts = texts
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._open: set[str] = set()
        self._aliased = 0
        self._nodes = 0

    def document(self) -> Any:
        found = None
        documents = 0
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self._error(event, "a second document begins; give one file for each")
                found, _ = self._node(next(self._events), 0)
        return found

    def _error(self, event: Any, text: str) -> InvalidInputError:
        return InvalidInputError(f"{self._where}: line {event.start_mark.line + 1}: {text}")

    def _node(self, event: Any, depth: int) -> tuple[Any, int]:
        """The value, and its weight: nodes and hundreds of characters, those behind aliases included."""
        self._nodes += 1
        if depth > DEPTH_MAX or self._nodes > NODES_MAX:
            raise self._error(event, f"nested deeper than {DEPTH_MAX}, or more than {NODES_MAX} values")
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        if event.tag is not None and event.tag not in _KNOWN_TAGS:
            raise self._error(event, f"the tag {shown(event.tag)} is not taken")
        if event.anchor is not None:
            self._open.add(event.anchor)
        if isinstance(event, yaml.ScalarEvent):
            made: tuple[Any, int] = (self._scalar(event), 1 + len(event.value) // 100)
        elif isinstance(event, yaml.MappingStartEvent):
            made = self._map(event, depth)
        else:
            made = self._list(event, depth)
        if event.anchor is not None:
            self._open.discard(event.anchor)
            self._anchors[event.anchor] = made
        return made

    def _alias(self, event: Any) -> tuple[Any, int]:
        if event.anchor in self._open:
            raise self._error(event, f"*{event.anchor} stands within what it stands for")
        if event.anchor not in self._anchors:
            raise self._error(event, f"*{event.anchor} has no anchor before it")
        found = self._anchors[event.anchor]
        self._aliased += found[1]
        if self._aliased > ALIASED_MAX:
            raise self._error(event, f"aliases stand for more than {ALIASED_MAX} values in all")
        return found

    def _list(self, event: Any, depth: int) -> tuple[Any, int]:
        made = YamlList()
        made.line = event.start_mark.line + 1
        weight = 1
        for inner in self._events:
            if isinstance(inner, yaml.SequenceEndEvent):
                break
            value, size = self._node(inner, depth + 1)
            made.append(value)
            weight += size
        return made, weight

    def _map(self, event: Any, depth: int) -> tuple[Any, int]:
        made = YamlMap()
        made.line = event.start_mark.line + 1
        merged: list[Mapping[str, Any]] = []
        weight = 1
        for inner in self._events:
            if isinstance(inner, yaml.MappingEndEvent):
                break
            if not isinstance(inner, yaml.ScalarEvent):
                raise self._error(inner, "a key must be plain text")
            key = inner.value
            value, size = self._node(next(self._events), depth + 1)
            weight += 1 + size
            if key == "<<" and inner.implicit[0]:
                merged += self._merged(inner, value)
            elif key in made:
                raise self._error(inner, f"the key {shown(key)} is given twice")
            else:
                made[key] = value
        for each in merged:
            for key, value in each.items():
                made.setdefault(key, value)
        return made, weight

    def _merged(self, event: Any, value: Any) -> list[Mapping[str, Any]]:
        maps = value if isinstance(value, list) else [value]
        if not all(isinstance(each, dict) for each in maps):
            raise self._error(event, "<< takes a map, or a list of maps")
        return list(maps)

    def _scalar(self, event: Any) -> Any:
        value: str = event.value
        plain = event.implicit[0] and event.style in {None, ""}
        kind = None if event.tag in {None, "!"} else event.tag.removeprefix(_TAG)
        if kind == "str" or (not plain and kind is None):
            return value
        if value in _NULL and kind in {None, "null"}:
            return None
        if self._texts:
            return value
        resolved = _resolved(value)
        if kind is not None and (kind != _kind(resolved) and not (kind == "float" and isinstance(resolved, int))):
            raise self._error(event, f"{shown(value)} is not what its tag says")
        return resolved


def _resolved(value: str) -> Any:
    if value in _TRUE or value in _FALSE:
        return value in _TRUE
    if _INTEGER.fullmatch(value):
        return int(value)
    if _HEX.fullmatch(value) or _OCTAL.fullmatch(value):
        return int(value, 0)
    if _FLOAT.fullmatch(value):
        return float(value)
    return value


def _kind(value: object) -> str:
    match value:
        case bool():
            return "bool"
        case int():
            return "int"
        case float():
            return "float"
    return "str"


_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _Dumper(_DUMPER):  # type: ignore[misc]
    """Quotes each text that a reader of YAML 1.1 or 1.2 would take for something else; no aliases."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the library's method
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    looks_plain = _resolved(text) is text and text not in _NULL
    return dumper.represent_scalar(f"{_TAG}str", text, style=None if looks_plain else '"')


_Dumper.add_representer(str, _text)


def written_yaml(value: Any) -> bytes:
    """In the order given, with texts in Unicode."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100_000)
    return text.encode()
