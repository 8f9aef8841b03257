"""JSON Lines: a project per line, as `cluster projects export` writes it without `--format`.  Pure, and streamed."""

import codecs
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import orjson

from cluster.interchange.model import Exported, ImportCandidate, Imported
from cluster.interchange.own_entries import own_candidate, own_row

LINE_BYTES_MAX = 1 << 20


def read_jsonl(source: Iterable[bytes]) -> Imported:
    return Imported(_candidates(source))


def _candidates(source: Iterable[bytes]) -> Iterator[ImportCandidate]:
    seen: dict[int, str] = {}
    for number, raw in enumerate(source, start=1):
        line = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw  # as some editors begin a file
        if line.strip():
            yield _candidate(line, f"line {number}", seen)


def _candidate(line: bytes, where: str, seen: dict[int, str]) -> ImportCandidate:
    if len(line) > LINE_BYTES_MAX:
        return ImportCandidate(where, "", wrong=f"longer than {LINE_BYTES_MAX} bytes")
    try:
        written = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return ImportCandidate(where, "", wrong=f"not JSON: {error}")
    return own_candidate(written, where, seen, what="a JSON object")


def write_jsonl(rows: Iterable[Mapping[str, Any]]) -> Exported:
    lines = [orjson.dumps(own_row(row, nulls=True), option=orjson.OPT_APPEND_NEWLINE) for row in rows]
    return Exported(b"".join(lines), len(lines))
