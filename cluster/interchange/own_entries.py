"""An entry of a file of our own: the fields of table ``projects``, and ``id``.  Pure.

Shared by the readers of JSON Lines, JSON, TOML, YAML and CSV.  What is wrong in a field is for
``cluster.project.project_from_map`` to say.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from cluster.errors import InvalidInputError
from cluster.interchange.model import FieldNote, FieldOutcome, ImportCandidate, Imported, shown
from cluster.masking import kind_of, masked_url
from cluster.project import FIELD_NAMES, ID_MAX, JSON_FIELDS

LIST_KEY = "projects"


def own_candidate(written: Any, where: str, seen: dict[int, str], *, what: str = "a map of fields") -> ImportCandidate:
    """``seen``: ids of the file so far, with their places."""
    if not isinstance(written, dict):
        return ImportCandidate(where, "", wrong=f"must be {what}")
    project = dict(written)
    fields = tuple(str(name) for name in project)
    project_id = project.pop("id", None)
    label = _label(project)
    wrong = None
    if project_id is not None and (type(project_id) is not int or not 1 <= project_id <= ID_MAX):
        wrong = f"id: must be an integer from 1 to {ID_MAX}"
    elif project_id is not None and seen.setdefault(project_id, where) != where:
        wrong = f"id {project_id} is also in {seen[project_id]}"
    if wrong is not None:
        return ImportCandidate(where, label, wrong=wrong, skipped_fields=fields)
    return ImportCandidate(where, label, project, project_id, mapped=fields)


def _label(project: Mapping[Any, Any]) -> str:
    name, url = project.get("name"), project.get("url")
    if isinstance(name, str) and name:
        return name
    return masked_url(url) if isinstance(url, str) else ""


def own_list(document: Any, places: Iterable[str], file: str) -> Imported:
    """Out of a list of entries, or a map with the list as ``projects``; ``places``: where each entry is."""
    notes: tuple[FieldNote, ...] = ()
    entries = document
    if isinstance(document, Mapping):
        if LIST_KEY not in document:
            raise InvalidInputError(f"{file}: has no list {LIST_KEY!r}")
        entries = document[LIST_KEY]
        notes = tuple(
            FieldNote(str(key), FieldOutcome.NOT_MAPPED, f"beside {LIST_KEY!r} nothing is read")
            for key in document
            if key != LIST_KEY
        )
    if not isinstance(entries, list):
        raise InvalidInputError(f"{file}: must hold a list of projects, not {kind_of(entries)}")
    seen: dict[int, str] = {}
    return Imported([own_candidate(each, place, seen) for each, place in zip(entries, places, strict=False)], notes)


def with_json_fields(written: dict[str, Any]) -> dict[str, Any]:
    """Headers and assertions may be JSON in a text, where a format has no lists, maps or nulls."""
    made = dict(written)
    for name in JSON_FIELDS:
        if isinstance(text := made.get(name), str):
            try:
                made[name] = orjson.loads(text)
            except orjson.JSONDecodeError as error:
                raise InvalidInputError(f"{name}: not JSON: {error}") from error
    return made


def own_row(row: Mapping[str, Any], *, nulls: bool) -> dict[str, Any]:
    """A project's id and fields in our order; without nulls where a format has none."""
    return {name: row[name] for name in ("id", *FIELD_NAMES) if nulls or row[name] is not None}


def has_null(value: object) -> bool:
    match value:
        case None:
            return True
        case dict():
            return any(has_null(each) for each in value.values())
        case list():
            return any(has_null(each) for each in value)
    return False


def unknown_columns(names: Iterable[str]) -> list[str]:
    return [shown(name) for name in names if name not in {"id", *FIELD_NAMES}]
