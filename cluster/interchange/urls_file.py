"""A plain list of URLs, one a line.  Pure.

Empty lines and lines that begin with ``#`` are left out, and what follows a space and a ``#``.  A host without a
scheme (``example.org``, ``example.org:8443/health``) becomes https, with a note.  The list says nothing but URLs, so
one that is polled already stays as it is.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from cluster.interchange.model import EntryBook, Exported, ExportNote, ImportCandidate, Imported
from cluster.masking import masked_url
from cluster.project import FIELD_NAMES, ProjectFields

MAPPED = {"url": "`url`; a host without a scheme becomes `https://`"}
NOT_MAPPED: dict[str, str] = {}

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")
_COMMENT = re.compile(r"\s#.*")
_HOST = re.compile(
    r"(localhost|\[[0-9A-Fa-f:.]+\]|[^\s/:?#,;={}\"'<>]+\.[^\s/:?#,;={}\"'<>]+)(:[0-9]{1,5})?([/?#]\S*)?"
)


def read_urls(text: str, where: str) -> Imported:  # noqa: ARG001 - as all readers
    candidates = []
    seen: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        url = listed_url(line)
        if url:
            candidates.append(_candidate(url, number, seen))
    return Imported(candidates)


def listed_url(line: str) -> str:
    """What a line lists; empty for none."""
    written = line.strip()
    return "" if written.startswith("#") else _COMMENT.sub("", written).strip()


def looks_like_urls(lines: Iterable[str]) -> bool:
    urls = [url for line in lines if (url := listed_url(line))]
    return bool(urls) and all(re.match(r"https?://\S+$", url, re.IGNORECASE) or _HOST.fullmatch(url) for url in urls)


def _candidate(url: str, number: int, seen: dict[str, int]) -> ImportCandidate:
    book = EntryBook({"url": url}, f"line {number}", masked_url(url))
    scheme = _SCHEME.match(url)
    if scheme is not None and scheme[0].lower() not in {"http:/", "https:/"}:
        return book.skip(f"ringpoll polls http and https, not {scheme[0].removesuffix(':/')}")
    book.take("url")
    if scheme is None:
        url = f"https://{url}"
        book.approximated("url", f"no scheme, taken as {masked_url(url)}")
    if seen.setdefault(url, number) != number:
        return book.skip(f"is also in line {seen[url]}")
    return book.project({"url": url}, NOT_MAPPED)


def write_urls(rows: Iterable[Mapping[str, Any]]) -> Exported:
    lines = []
    notes = []
    default = ProjectFields(url="")
    for row in rows:
        lines.append(f"{row['url']}\n")
        lost = [name for name in FIELD_NAMES if name != "url" and row[name] != getattr(default, name)]
        notes += [ExportNote(row["id"], name, "a list of URLs holds nothing but URLs") for name in lost]
    return Exported("".join(lines).encode(), len(lines), tuple(notes))
