"""Table ``projects`` as files come into it and go out of it: the SQL of ``cluster projects import`` and ``export``.

An import is one transaction of its caller: the entries are copied into a temporary table in chunks, each finds the
project that it is, and then rows are added, changed or, when nothing differs, left alone (whose trigger then tells no
worker).  Imports wait for each other.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import msgspec
import orjson

from cluster import database
from cluster.interchange.formats import Matching
from cluster.project import FIELD_NAMES, JSON_FIELDS, ProjectFields

CHUNK_ROWS = 5_000
COLUMNS = ", ".join(("id", *FIELD_NAMES))
_NAMES = ", ".join(FIELD_NAMES)
_IMPORT_LOCK = 0x72696E67706F6C6C  # of pg_advisory_xact_lock: the letters "ringpoll"

OnChunk = Callable[[int], None]


class ImportRow(msgspec.Struct, frozen=True):
    """``sequence``: its number in the import, from 0."""

    sequence: int
    id: int | None
    fields: ProjectFields


class ImportOutcome(msgspec.Struct, frozen=True):
    """``actions``: ``add``, ``update`` or ``unchanged`` for each sequence, when asked for."""

    added: int
    updated: int
    unchanged: int
    actions: dict[int, str]


async def load_rows(conn: database.Connection, rows: Sequence[ImportRow], on_chunk: OnChunk) -> None:
    """Into the temporary table ``imported``; within a transaction."""
    await conn.execute("SELECT pg_advisory_xact_lock($1)", _IMPORT_LOCK)
    await conn.execute(
        "CREATE TEMP TABLE imported ON COMMIT DROP AS "  # noqa: S608 - constants
        f"SELECT 0 AS sequence, NULL::text AS action, {COLUMNS} FROM projects WHERE false"
    )
    for start in range(0, len(rows), CHUNK_ROWS):
        chunk = rows[start : start + CHUNK_ROWS]
        await conn.copy_records_to_table(
            "imported",
            records=[(each.sequence, each.id, *_values(each.fields)) for each in chunk],
            columns=["sequence", "id", *FIELD_NAMES],
        )
        on_chunk(len(chunk))
    await conn.execute("ANALYZE imported")


async def match_rows(conn: database.Connection, matching: Matching) -> dict[int, str]:
    """Give each row without an id that of the project it is; those that can't be told are taken out, with the reason.

    By name; a nameless one by its URL, among the nameless.  ``url``: one that is in the table at all is ``unchanged``.
    """
    if matching == "none":
        return {}
    if matching == "url":
        await conn.execute(
            "UPDATE imported i SET action = 'unchanged' "
            "WHERE id IS NULL AND EXISTS (SELECT 1 FROM projects p WHERE p.url = i.url)"
        )
        return {}
    same = "p.name = i.name AND (i.name <> '' OR p.url = i.url)"
    found = await conn.fetch(
        "SELECT i.sequence, array_agg(p.id ORDER BY p.id) AS ids "  # noqa: S608 - a constant
        f"FROM imported i JOIN projects p ON {same} WHERE i.id IS NULL GROUP BY i.sequence"
    )
    wrong = {
        row["sequence"]: f"projects {', '.join(map(str, row['ids'][:5]))} have this name; give the id, or rename them"
        for row in found
        if len(row["ids"]) > 1
    }
    await conn.execute(
        "UPDATE imported i SET id = m.id FROM unnest($1::int[], $2::bigint[]) AS m(sequence, id) "
        "WHERE m.sequence = i.sequence",
        [row["sequence"] for row in found if len(row["ids"]) == 1],
        [row["ids"][0] for row in found if len(row["ids"]) == 1],
    )
    twice = await conn.fetch(
        "SELECT sequence, id FROM (SELECT sequence, id, count(*) OVER (PARTITION BY id) AS times, "
        "row_number() OVER (PARTITION BY id ORDER BY sequence) AS number FROM imported WHERE id IS NOT NULL) each "
        "WHERE times > 1 AND number > 1"
    )
    wrong |= {row["sequence"]: f"is project {row['id']}, which an entry before it is, too" for row in twice}
    await conn.execute("DELETE FROM imported WHERE sequence = ANY($1::int[])", list(wrong))
    return wrong


async def write_rows(conn: database.Connection, *, with_actions: bool) -> ImportOutcome:
    """Add and change what is in ``imported``."""
    await conn.execute(
        "SELECT 1 FROM projects p WHERE EXISTS (SELECT 1 FROM imported i WHERE i.id = p.id) ORDER BY id FOR UPDATE"
    )
    ours = ", ".join(f"p.{name}" for name in FIELD_NAMES)
    theirs = ", ".join(f"i.{name}" for name in FIELD_NAMES)
    await conn.execute(
        "UPDATE imported SET action = CASE WHEN k.known IS NULL THEN 'add' WHEN k.same THEN 'unchanged' "  # noqa: S608
        f"ELSE 'update' END FROM (SELECT i.sequence, p.id AS known, ROW({ours}) IS NOT DISTINCT FROM ROW({theirs}) "
        "AS same FROM imported i LEFT JOIN projects p ON p.id = i.id WHERE i.action IS NULL) k "
        "WHERE k.sequence = imported.sequence"
    )
    counts = {
        row["action"]: row["count"] for row in await conn.fetch("SELECT action, count(*) FROM imported GROUP BY 1")
    }
    actions = {}
    if with_actions:
        actions = {row["sequence"]: row["action"] for row in await conn.fetch("SELECT sequence, action FROM imported")}
    assigned = ", ".join(f"{name} = i.{name}" for name in FIELD_NAMES)
    await conn.execute(
        f"UPDATE projects p SET {assigned} FROM imported i WHERE i.action = 'update' AND p.id = i.id"  # noqa: S608
    )
    with_id = await conn.execute(
        f"INSERT INTO projects ({COLUMNS}) SELECT {COLUMNS} FROM imported "  # noqa: S608 - constants
        "WHERE action = 'add' AND id IS NOT NULL "
        f"ON CONFLICT (id) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in FIELD_NAMES)}"
    )
    if not with_id.endswith(" 0"):  # ids given later must not collide with these
        await conn.execute(
            "SELECT setval(pg_get_serial_sequence('projects', 'id'), "
            "greatest((SELECT max(id) FROM projects), nextval(pg_get_serial_sequence('projects', 'id'))))"
        )
    await conn.execute(
        f"INSERT INTO projects ({_NAMES}) SELECT {_NAMES} FROM imported "  # noqa: S608 - constants
        "WHERE action = 'add' AND id IS NULL ORDER BY sequence"
    )
    return ImportOutcome(counts.get("add", 0), counts.get("update", 0), counts.get("unchanged", 0), actions)


def _values(fields: ProjectFields) -> list[Any]:
    values = [getattr(fields, name) for name in FIELD_NAMES]
    for at, name in enumerate(FIELD_NAMES):
        if name in JSON_FIELDS and values[at] is not None:
            values[at] = orjson.dumps(values[at]).decode()
    return values


def readable_row(row: Any) -> dict[str, Any]:
    """A row with its JSON decoded."""
    values = dict(row)
    for name in JSON_FIELDS:
        if isinstance(values[name], str):
            values[name] = orjson.loads(values[name])
    return values


async def stored_projects(conn: database.Connection) -> AsyncIterator[dict[str, Any]]:
    """All projects by id, as they are at one instant; within a transaction."""
    async for row in conn.cursor(f"SELECT {COLUMNS} FROM projects ORDER BY id", prefetch=CHUNK_ROWS):  # noqa: S608
        yield readable_row(row)
