"""YAML of our own: a list of projects, or a map with the list as ``projects``.  Pure."""

from collections.abc import Iterable, Mapping
from typing import Any

from cluster.interchange.model import Exported, Imported
from cluster.interchange.own_entries import LIST_KEY, own_list, own_row
from cluster.interchange.yaml_text import line_of, read_yaml, written_yaml


def read_own_yaml(text: str, where: str) -> Imported:
    document = read_yaml(text, where)
    entries = document.get(LIST_KEY) if isinstance(document, dict) else document
    listed = entries if isinstance(entries, list) else []
    lines = (line_of(each) for each in listed)
    places = (f"line {line}" if line is not None else f"{LIST_KEY}[{at}]" for at, line in enumerate(lines))
    return own_list(document, places, where)


def write_own_yaml(rows: Iterable[Mapping[str, Any]]) -> Exported:
    made = [own_row(row, nulls=False) for row in rows]
    return Exported(written_yaml({LIST_KEY: made}), len(made))
