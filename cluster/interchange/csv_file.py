"""CSV of our own (RFC 4180): a row per project under a row of column names.  Pure.

Columns are ``id`` and the fields of table ``projects``, in any order; ``url`` is required, other names are refused.
An empty cell leaves the field out.  ``headers`` and ``assertions`` are JSON.  Between cells stands a comma; a
semicolon or a tab, as some spreadsheets write it, is noticed from the first row.

A cell that a spreadsheet would take for a formula (it begins with ``= + - @``, a tab or a carriage return) gets an
apostrophe in front, which reading takes off again; an apostrophe alone is the empty text.  The same guard is in
what `cluster results --csv` writes.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import orjson

from cluster.errors import InvalidInputError
from cluster.interchange.model import Exported, ImportCandidate, Imported
from cluster.interchange.own_entries import own_candidate, own_row, unknown_columns
from cluster.interchange.toml_file import parsed_json_fields
from cluster.project import FIELD_NAMES, JSON_FIELDS

CELL_CHARS_MAX = 1 << 20
COLUMNS = ("id", *FIELD_NAMES)
_DELIMITERS = ",;\t"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_GUARDED = re.compile(r"'(?=[=+\-@\t\r']|\Z)")
_NUMBER = re.compile(r"-?[0-9]{1,18}")
_FLAGS = {"true": True, "false": False}
_FLAG_COLUMNS = frozenset({"enabled", "follow_redirects", "verify_tls"})
_NUMBER_COLUMNS = frozenset(
    {"id", "interval", "timeout_ms", "down_after", "up_after", "ip_version", "body_limit_bytes", "connect_timeout_ms"}
    | {"retries", "retry_delay_ms"}
)


def guarded(text: str) -> str:
    """A text as a cell that no spreadsheet calculates."""
    return f"'{text}" if text.startswith(_FORMULA) or _GUARDED.match(text) or not text else text


def unguarded(cell: str) -> str:
    return cell[1:] if _GUARDED.match(cell) else cell


def read_csv(text: str, where: str) -> Imported:
    first = text.split("\n", 1)[0].strip("\r")
    delimiter = _delimiter(first, where)
    before = csv.field_size_limit(CELL_CHARS_MAX)
    try:
        return Imported(list(_candidates(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))))
    except csv.Error as error:
        raise InvalidInputError(f"{where}: not CSV: {error}") from error
    finally:
        csv.field_size_limit(before)


def csv_columns(first: str) -> tuple[str, list[str]] | None:
    """The delimiter and the names of a first line, when all of them are columns of ours and ``url`` is there."""
    for delimiter in _DELIMITERS:
        names = [name.strip().strip('"').strip().lower() for name in first.split(delimiter)]
        if "url" in names and not unknown_columns(names):
            return delimiter, names
    return None


def _delimiter(first: str, where: str) -> str:
    if found := csv_columns(first):
        return found[0]
    names = [name.strip().strip('"').lower() for name in re.split("[,;\t]", first)]
    unknown = unknown_columns(names)
    why = f"unknown columns {', '.join(unknown[:5])}" if unknown else "there is no column url"
    raise InvalidInputError(f"{where}: line 1: {why}; the columns are {', '.join(COLUMNS)}")


def _candidates(reader: Any) -> Iterator[ImportCandidate]:
    names = [name.strip().lower() for name in next(reader)]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InvalidInputError(f"line 1: the column {twice[0]} is there twice")
    seen: dict[int, str] = {}
    line = reader.line_num + 1
    for cells in reader:
        where, line = f"line {line}", reader.line_num + 1
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) > len(names):
            yield ImportCandidate(where, "", wrong=f"has {len(cells)} cells for {len(names)} columns")
            continue
        written = {name: _value(name, cell) for name, cell in zip(names, cells, strict=False) if cell != ""}
        yield parsed_json_fields(own_candidate(written, where, seen))


def _value(name: str, cell: str) -> Any:
    """By the column's type; what does not look like it stays a text, for validation to refuse with its name."""
    if name in _FLAG_COLUMNS:
        return _FLAGS.get(cell.strip().lower(), cell)
    if name in _NUMBER_COLUMNS:
        return int(cell) if _NUMBER.fullmatch(cell.strip()) else cell
    return unguarded(cell)


def write_csv(rows: Iterable[Mapping[str, Any]]) -> Exported:
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(COLUMNS)
    count = 0
    for row in rows:
        writer.writerow([_cell(name, value) for name, value in own_row(row, nulls=True).items()])
        count += 1
    return Exported(out.getvalue().encode(), count)


def _cell(name: str, value: Any) -> Any:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case str():
            # An empty name is its default; of other texts, empty is something else than left out.
            return "" if name == "name" and not value else guarded(value)
    return orjson.dumps(value).decode() if name in JSON_FIELDS else value
