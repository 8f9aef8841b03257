"""What readers of all formats give back, and the book-keeping by which none of them loses a field.  Pure.

An ``ImportCandidate`` is one entry of a file: a project as a map for ``cluster.project.project_from_map``, or the
reason why there is none.  Each field of the entry is in ``mapped`` (it is kept, or says nothing), in ``notes``
(approximated, or not mapped), or, with the whole entry, in ``skipped_fields``.  ``EntryBook`` sees to that: what a
reader did not take is noted as not mapped.
"""

import enum
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import xxhash

from cluster.errors import InvalidInputError
from cluster.project import NAME_CHARS_MAX

SHOWN_CHARS_MAX = 100
UNKNOWN_FIELD = "not a field that this import knows"


class FieldOutcome(enum.StrEnum):
    APPROXIMATED = "approximated"
    NOT_MAPPED = "not mapped"


class FieldNote(msgspec.Struct, frozen=True, gc=False):
    """What became of a field that is not simply kept; ``field`` is its path within the entry, or the file."""

    field: str
    outcome: FieldOutcome
    text: str


class ImportCandidate(msgspec.Struct, frozen=True):
    """``where``: a line or a path in the file.  Exactly one of ``project``, ``skipped`` and ``wrong`` is set."""

    where: str
    label: str  # what people call it
    project: dict[str, Any] | None = None
    id: int | None = None
    skipped: str | None = None  # why ringpoll can't do what the entry asks for
    wrong: str | None = None  # what has to be corrected in the file
    mapped: tuple[str, ...] = ()
    notes: tuple[FieldNote, ...] = ()
    skipped_fields: tuple[str, ...] = ()


class Imported(msgspec.Struct, frozen=True):
    """``notes`` are those on the file as a whole."""

    candidates: Iterable[ImportCandidate]
    notes: tuple[FieldNote, ...] = ()


class ExportNote(msgspec.Struct, frozen=True, gc=False):
    """What a format can't hold of a project: ``field`` None for all of it."""

    project_id: int
    field: str | None
    text: str


class Exported(msgspec.Struct, frozen=True):
    data: bytes
    count: int
    notes: tuple[ExportNote, ...] = ()


@functools.lru_cache(maxsize=4_096)
def _one_of_each(names: tuple[str, ...]) -> tuple[str, ...]:
    """Entries of a file have the same fields, as a rule: one tuple for all of them."""
    return names


class EntryBook:
    """One entry while it is read.  ``take`` a field, then say what became of it when it isn't simply kept."""

    def __init__(self, entry: Mapping[str, Any], where: str, label: str = "") -> None:
        self.where = where
        self.label = label
        self._left = {str(name): value for name, value in entry.items()}
        self._all = tuple(self._left)
        self._mapped: dict[str, None] = {}
        self._notes: list[FieldNote] = []

    def take(self, field: str) -> Any:
        """The value, None where there is none; counts as mapped unless something else is said."""
        if field not in self._left:
            return None
        self._mapped[field] = None
        return self._left.pop(field)

    def take_flag(self, field: str, texts: Mapping[str, bool], *, default: bool = False) -> bool:
        """``texts``: how the tool writes flags, in lower case.  Raises InvalidInputError."""
        value = self.take(field)
        if value is None:
            return default
        found = texts.get(str(value).lower())
        if found is None:
            raise InvalidInputError(f"{field}: must be true or false, not {shown(value)}")
        return found

    def take_map(self, field: str, problem: str | None = None) -> "EntryBook | None":
        """The book of a map within the entry, whose fields are named ``field.name``; None where there is none."""
        value = self.take(field)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            self.lost(field, problem or "should be a map")
            return None
        return self.within(field, value)

    def within(self, field: str, value: Mapping[str, Any]) -> "EntryBook":
        """The book of a map that is a part of the entry."""
        inner = EntryBook({f"{field}.{name}": each for name, each in value.items()}, self.where)
        inner._notes = self._notes
        inner._mapped = self._mapped
        return inner

    @property
    def left(self) -> tuple[str, ...]:
        return tuple(self._left)

    def mapped(self, field: str) -> None:
        self._mapped[field] = None

    def approximated(self, field: str, text: str) -> None:
        self._note(field, FieldOutcome.APPROXIMATED, text)

    def lost(self, field: str, text: str) -> None:
        self._note(field, FieldOutcome.NOT_MAPPED, text)

    def _note(self, field: str, outcome: FieldOutcome, text: str) -> None:
        self._mapped.pop(field, None)
        self._left.pop(field, None)
        self._notes.append(FieldNote(field, outcome, text))

    def leave(self, reasons: Mapping[str, str], *, prefix: str = "") -> None:
        """What was not taken: not mapped, for the reason given or because it is unknown.  Null says nothing."""
        for field, value in list(self._left.items()):
            if value is None:
                self.take(field)
            else:
                self.lost(field, reasons.get(field.removeprefix(prefix), UNKNOWN_FIELD))

    def project(self, project: dict[str, Any], reasons: Mapping[str, str]) -> ImportCandidate:
        self.leave(reasons)
        return ImportCandidate(
            self.where,
            self.label,
            project,
            mapped=_one_of_each(tuple(self._mapped)),
            notes=tuple(self._notes),
        )

    def skip(self, why: str) -> ImportCandidate:
        return ImportCandidate(self.where, self.label, skipped=why, skipped_fields=_one_of_each(self._all))

    def wrong(self, why: str) -> ImportCandidate:
        return ImportCandidate(self.where, self.label, wrong=why, skipped_fields=_one_of_each(self._all))


def shown(value: object) -> str:
    """A value for a message, in ASCII and cut."""
    return ascii(value if not isinstance(value, str) else value[:SHOWN_CHARS_MAX])[: SHOWN_CHARS_MAX + 20]


def fitting_name(name: str) -> str:
    """A name as the table takes it: one that is too long is cut, and ends with a hash of the whole."""
    printable = "".join(" " if not each.isprintable() else each for each in name).strip()
    if len(printable) <= NAME_CHARS_MAX:
        return printable
    return f"{printable[: NAME_CHARS_MAX - 9]}~{xxhash.xxh3_64_hexdigest(name.encode('utf-8', 'replace'))[:8]}"


def literal_value(text: str) -> str:
    """A header's value, user or token of another tool in which ``${`` is no reference to a secret."""
    return text.replace("${", "$${")
