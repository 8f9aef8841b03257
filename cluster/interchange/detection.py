"""Which format a file has, by its name and its content.  Pure.

The suffix decides where one format has it; JSON and YAML are told apart by the keys at their top.  Without a suffix
that says something the content decides alone.  What fits none, or several, is refused with what to say.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from cluster.errors import InvalidInputError
from cluster.interchange.csv_file import csv_columns
from cluster.interchange.formats import FORMATS
from cluster.interchange.own_entries import LIST_KEY
from cluster.interchange.source_text import decoded
from cluster.interchange.urls_file import looks_like_urls

HEAD_BYTES = 1 << 20  # of a file without a telling suffix
_TOP_KEYS = {
    LIST_KEY: "own",
    "endpoints": "gatus",
    "external-endpoints": "gatus",
    "suites": "gatus",
    "scrape_configs": "prometheus",
    "monitorList": "uptime-kuma",
}
_BLACKBOX_KEY = "modules"
_ALL_TOP_KEYS = frozenset({*_TOP_KEYS, _BLACKBOX_KEY})
_YAML_KEY = re.compile(r"""^(?:(["']?)([A-Za-z_][\w-]*)\1)\s*:(?:\s|$)""", re.MULTILINE)
_YAML_ITEM = re.compile(r"""^\s*-\s+(?:\{\s*)?(["']?)([A-Za-z_][\w-]*)\1\s*:""", re.MULTILINE)
_YAML_ANY_KEY = re.compile(r"""(?:^|[\s{,"'])([A-Za-z_][\w-]*)["']?\s*:""", re.MULTILINE)
_TOML_TABLE = re.compile(r"^\s*\[{1,2}\s*[A-Za-z_\"'][^\]]*\]{1,2}\s*(#.*)?$", re.MULTILINE)


def detected_format(name: str, raw: bytes) -> str:
    """``raw``: all of the file, or at least its first ``HEAD_BYTES``.  Raises InvalidInputError."""
    _, dot, ending = name.rpartition("/")[2].lower().rpartition(".")
    suffix = dot + ending
    fitting = [each for each in FORMATS.values() if suffix in each.suffixes]
    if len(fitting) == 1 and suffix != ".json":
        return fitting[0].name
    text = decoded(_whole_lines(raw), name)
    if suffix == ".json":
        return _of_json(name, text)
    if suffix in {".yaml", ".yml"}:
        return _of_yaml(name, text)
    return _of_content(name, text)


def _whole_lines(raw: bytes) -> bytes:
    """A head that was cut within a line, or within a character, ends with its last whole line."""
    return raw if len(raw) < HEAD_BYTES else raw[: raw.rfind(b"\n") + 1] or raw


def _unknown(name: str, why: str) -> InvalidInputError:
    return InvalidInputError(f"{name}: can't tell its format: {why}; say it with --format ({', '.join(FORMATS)})")


def _of_keys(name: str, keys: Iterable[str], own: str) -> str:
    present = set(keys)
    found = {_TOP_KEYS[key] for key in present & set(_TOP_KEYS)}
    if len(found) > 1:
        raise _unknown(name, f"it has {', '.join(sorted(present & set(_TOP_KEYS)))}")
    if found:
        (one,) = found
        return own if one == "own" else one
    if _BLACKBOX_KEY in present:
        raise InvalidInputError(
            f"{name}: holds modules of blackbox_exporter, no targets; "
            "give it with --blackbox beside the file of targets"
        )
    raise _unknown(name, f"its keys are {', '.join(sorted(present)[:8]) or 'none'}")


def _of_entries(name: str, entries: list[Any], own: str) -> str:
    maps = [each for each in entries if isinstance(each, Mapping)]
    return _of_entry_keys(name, {str(key) for each in maps[:100] for key in each}, own, empty=not entries)


def _of_entry_keys(name: str, keys: set[str], own: str, *, empty: bool = False) -> str:
    if {"url", "type", "maxretries"} <= keys:
        return "uptime-kuma"
    if "targets" in keys:  # which no entry of ours has
        return "prometheus"
    if "url" in keys:
        return own
    if empty:
        return own
    raise _unknown(name, f"its entries have {', '.join(sorted(keys)[:8]) or 'no fields'}")


def _of_json(name: str, text: str) -> str:
    try:
        document = orjson.loads(text)
    except (orjson.JSONDecodeError, UnicodeEncodeError):
        if _first_line_is_json(text):
            return "jsonl"
        return _of_cut_json(name, text)
    if isinstance(document, list):
        return _of_entries(name, document, "json")
    if isinstance(document, dict):
        return "json" if "url" in document else _of_keys(name, document, "json")
    raise _unknown(name, "it is JSON, but neither a list nor a map")


def _of_cut_json(name: str, text: str) -> str:
    """Of the head of a long document, or of one that is not JSON: the format's reader then says where."""
    keys = set(re.findall(r'"([A-Za-z_][\w-]*)"\s*:', text[:HEAD_BYTES]))
    if text.lstrip().startswith("["):
        return _of_entry_keys(name, keys, "json")
    return _of_keys(name, keys & _ALL_TOP_KEYS, "json")


def _first_line_is_json(text: str) -> bool:
    first = next((line for line in text.splitlines() if line.strip()), "")
    try:
        return isinstance(orjson.loads(first), dict)
    except (orjson.JSONDecodeError, UnicodeEncodeError):
        return False


def _of_yaml(name: str, text: str) -> str:
    """By lines, so that a document is composed once, by the reader of its format."""
    if text.lstrip()[:1] in {"{", "["}:
        return _of_flow_yaml(name, text)
    if keys := [found[2] for found in _YAML_KEY.finditer(text)]:
        return _of_keys(name, keys, "yaml")
    if _YAML_ITEM.search(text):
        return _of_entry_keys(name, set(_YAML_ANY_KEY.findall(text)), "yaml")
    if not text.strip():
        raise _unknown(name, "it is empty")
    raise _unknown(name, "it is YAML, but neither a map nor a list of maps")


def _of_flow_yaml(name: str, text: str) -> str:
    """In braces, as JSON or with YAML's own texts."""
    try:
        orjson.loads(text)
    except (orjson.JSONDecodeError, UnicodeEncodeError):
        keys = set(_YAML_ANY_KEY.findall(text))
        is_list = text.lstrip().startswith("[")
        return _of_entry_keys(name, keys, "yaml") if is_list else _of_keys(name, keys & _ALL_TOP_KEYS, "yaml")
    found = _of_json(name, text)
    return "yaml" if found == "json" else found


def _of_content(name: str, text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return "jsonl"  # nothing is in it in any format
    if lines[0].lstrip().startswith("{"):
        return "jsonl" if _first_line_is_json(text) and "monitorList" not in lines[0] else _of_json(name, text)
    if lines[0].lstrip().startswith("["):
        return "toml" if _TOML_TABLE.match(lines[0]) else _of_json(name, text)
    if csv_columns(lines[0]) is not None:
        return "csv"
    if looks_like_urls(lines[:1_000]):
        return "urls"
    if _TOML_TABLE.search(text):
        return "toml"
    if _YAML_KEY.search(text) or _YAML_ITEM.search(text):
        return _of_yaml(name, text)
    raise _unknown(name, "its lines are neither JSON, nor URLs, nor CSV with a column url")
