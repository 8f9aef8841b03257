"""TOML of our own: a table ``[[projects]]`` for each project.  Pure.

TOML has no null: what is left out has its default.  Assertions with a null in them are JSON in a text.
"""

import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

import orjson
import tomli_w

from cluster.errors import InvalidInputError
from cluster.interchange.model import Exported, ImportCandidate, Imported
from cluster.interchange.own_entries import LIST_KEY, has_null, own_list, own_row, with_json_fields
from cluster.project import JSON_FIELDS


def read_toml(text: str, where: str) -> Imported:
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidInputError(f"{where}: not TOML: {error}") from error
    entries = document.get(LIST_KEY)
    count = len(entries) if isinstance(entries, list) else 0
    imported = own_list(document, (f"{LIST_KEY}[{number}]" for number in range(count)), where)
    return Imported([parsed_json_fields(each) for each in imported.candidates], imported.notes)


def parsed_json_fields(candidate: ImportCandidate) -> ImportCandidate:
    if candidate.project is None:
        return candidate
    try:
        project = with_json_fields(candidate.project)
    except InvalidInputError as error:
        return ImportCandidate(candidate.where, candidate.label, wrong=str(error), skipped_fields=candidate.mapped)
    return ImportCandidate(candidate.where, candidate.label, project, candidate.id, mapped=candidate.mapped)


def write_toml(rows: Iterable[Mapping[str, Any]]) -> Exported:
    made = []
    for row in rows:
        entry = own_row(row, nulls=False)
        for name in JSON_FIELDS:
            if has_null(entry.get(name, 0)):
                entry[name] = orjson.dumps(entry[name]).decode()
        made.append(entry)
    return Exported(tomli_w.dumps({LIST_KEY: made}).encode(), len(made))
