"""One JSON document of our own: a list of projects, or ``{"projects": [...]}``.  Pure."""

from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from cluster.errors import InvalidInputError
from cluster.interchange.model import Exported, Imported
from cluster.interchange.own_entries import LIST_KEY, own_list, own_row


def read_json_document(text: str, where: str) -> Any:
    try:
        return orjson.loads(text)
    except (orjson.JSONDecodeError, UnicodeEncodeError) as error:
        raise InvalidInputError(f"{where}: not JSON: {error}") from error


def read_json(text: str, where: str) -> Imported:
    document = read_json_document(text, where)
    if isinstance(document, dict) and LIST_KEY not in document and "url" in document:
        document = [document]
    entries = document.get(LIST_KEY) if isinstance(document, dict) else document
    count = len(entries) if isinstance(entries, list) else 0
    return own_list(document, (f"{LIST_KEY}[{number}]" for number in range(count)), where)


def write_json(rows: Iterable[Mapping[str, Any]]) -> Exported:
    made = [own_row(row, nulls=True) for row in rows]
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    return Exported(orjson.dumps({LIST_KEY: made}, option=options), len(made))
