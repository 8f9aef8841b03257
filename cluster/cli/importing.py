"""What ``cluster projects import`` does between the file and the table: find the format, read, check, say.

Every entry ends as one of: added, updated, unchanged, skipped (another tool's check that ringpoll can't make), wrong.
What is wrong refuses all, unless ``skip_invalid``; then it is left out, with its line.  What of another tool's entry is
approximated or not mapped is said: for each entry in a dry run, else once for each kind with a count.
"""

import io
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import click
import msgspec

from cluster import database
from cluster.cli.project_table import ImportOutcome, ImportRow, load_rows, match_rows, write_rows
from cluster.errors import InvalidInputError
from cluster.interchange.blackbox import read_blackbox
from cluster.interchange.detection import HEAD_BYTES, detected_format
from cluster.interchange.formats import FORMATS, JSONL, InterchangeFormat
from cluster.interchange.gatus import read_gatus
from cluster.interchange.jsonl_file import read_jsonl
from cluster.interchange.model import FieldNote, FieldOutcome, ImportCandidate, Imported
from cluster.interchange.prometheus import read_prometheus
from cluster.interchange.source_text import FILE_BYTES_MAX, decoded
from cluster.masking import is_secret_header
from cluster.project import ProjectFields, project_from_map
from cluster.secret_references import REFERENCE

COMPLAINTS_MAX = 20
SECRETS_SHOWN = 3
DIRECTORY_FILES_MAX = 10_000
_INDEX = re.compile(r"\[\d+\]")

OnEntries = Callable[[int, int | None], None]  # so many more, of so many in all


class ImportSource(msgspec.Struct, frozen=True):
    """A file that was opened and whose format is known; ``imported`` may be read once."""

    format: InterchangeFormat
    imported: Imported


class CheckedEntry(msgspec.Struct, frozen=True):
    where: str
    label: str
    id: int | None
    fields: ProjectFields
    mapped: tuple[str, ...]
    notes: tuple[FieldNote, ...]


class EntryReport:
    """What there is to say of an import, collected while its entries are checked."""

    def __init__(self, chosen: InterchangeFormat, *, dry_run: bool, skip_invalid: bool) -> None:
        self.format = chosen
        self.dry_run = dry_run
        self.skip_invalid = skip_invalid
        self.entries: list[CheckedEntry] = []
        self.skipped: list[ImportCandidate] = []
        self.wrong = 0

    def complain(self, where: str, label: str, error: str) -> None:
        self.wrong += 1
        if self.wrong <= COMPLAINTS_MAX or self.skip_invalid:
            name = f" {label}:" if label and not self.format.own else ""
            click.echo(f"{where}:{name} {error}", err=True)


# ---- reading ---------------------------------------------------------------------------------------------------------


def opened(file: Path, chosen: str | None, source: IO[bytes], blackbox: Path | None) -> ImportSource:
    """``chosen``: None to find it out."""
    name = "standard input" if str(file) == "-" else str(file)
    head = source.read(HEAD_BYTES)
    if chosen is None:
        chosen = detected_format("-" if str(file) == "-" else str(file), head)
    found = FORMATS[chosen]
    if found.name == JSONL:
        return ImportSource(found, read_jsonl(_lines(head, source)))
    text = decoded(head + source.read(FILE_BYTES_MAX + 1), name)
    if found.name == "prometheus":
        modules = None
        if blackbox is not None:
            modules = read_blackbox(decoded(blackbox.read_bytes(), str(blackbox)), str(blackbox))
        return ImportSource(found, read_prometheus(text, name, modules))
    if blackbox is not None:
        raise InvalidInputError(f"--blackbox: goes with targets of Prometheus, and {name} is {found.name}")
    assert found.read is not None
    return ImportSource(found, found.read(text, name))


def _lines(head: bytes, source: IO[bytes]) -> Iterator[bytes]:
    whole, end, rest = head.rpartition(b"\n")
    yield from io.BytesIO(whole + end)
    if last := rest + source.readline():
        yield last
    yield from source


def opened_directory(directory: Path, chosen: str | None) -> ImportSource:
    """Gatus reads the YAML files of a directory, and of those in it, as one."""
    if chosen not in {None, "gatus"}:
        raise InvalidInputError(f"{directory} is a directory, which only gatus reads")
    files = sorted(each for each in directory.rglob("*") if each.suffix in {".yml", ".yaml"} and each.is_file())
    if not files or len(files) > DIRECTORY_FILES_MAX:
        raise InvalidInputError(f"{directory}: has {len(files)} files .yaml or .yml, of 1 to {DIRECTORY_FILES_MAX}")
    texts = [(str(each.relative_to(directory)), decoded(each.read_bytes(), str(each))) for each in files]
    return ImportSource(FORMATS["gatus"], read_gatus(texts))


def check(source: ImportSource, report: EntryReport, on_entries: OnEntries) -> None:
    """Every entry as a valid project, skipped or wrong; complains about each that is wrong, then refuses all."""
    candidates = source.imported.candidates
    total = len(candidates) if isinstance(candidates, list) else None
    names: dict[tuple[str, str], str] = {}
    for candidate in candidates:
        on_entries(1, total)
        if candidate.skipped is not None:
            report.skipped.append(candidate)
        elif candidate.wrong is not None:
            report.complain(candidate.where, candidate.label, candidate.wrong)
        else:
            try:
                report.entries.append(_checked(candidate, source.format, names))
            except InvalidInputError as error:
                report.complain(candidate.where, candidate.label, str(error))
    refuse_wrong(report)


def refuse_wrong(report: EntryReport) -> None:
    if report.wrong and not report.skip_invalid:
        what = "lines" if report.format.name == JSONL else "entries"
        raise InvalidInputError(
            f"{report.wrong} {what} are wrong, so nothing was imported; correct them and try again"
            + ("" if report.format.own else ", or leave them out with --skip-invalid")
        )


def _checked(candidate: ImportCandidate, chosen: InterchangeFormat, names: dict[tuple[str, str], str]) -> CheckedEntry:
    fields = project_from_map(candidate.project or {})
    if chosen.matching == "name" and candidate.id is None:
        key = (fields.name, "" if fields.name else fields.url)
        if names.setdefault(key, candidate.where) != candidate.where:
            what = f"the name {fields.name!a}" if fields.name else "this URL, without a name,"
            raise InvalidInputError(f"{what} is also in {names[key]}; what it is to update can't be told")
    return CheckedEntry(candidate.where, candidate.label, candidate.id, fields, candidate.mapped, candidate.notes)


# ---- writing ---------------------------------------------------------------------------------------------------------


async def store(conn: database.Connection, report: EntryReport, on_entries: OnEntries) -> ImportOutcome:
    """All in one transaction, which a dry run rolls back."""
    rows = [ImportRow(at, each.id, each.fields) for at, each in enumerate(report.entries)]
    transaction = conn.transaction()
    await transaction.start()
    try:
        await load_rows(conn, rows, lambda count: on_entries(count, len(rows)))
        for sequence, error in sorted((await match_rows(conn, report.format.matching)).items()):
            entry = report.entries[sequence]
            report.complain(entry.where, entry.label, error)
        refuse_wrong(report)
        outcome = await write_rows(conn, with_actions=report.dry_run and report.format.name != JSONL)
    except BaseException:
        await transaction.rollback()
        raise
    await (transaction.rollback() if report.dry_run else transaction.commit())
    return outcome


# ---- saying ----------------------------------------------------------------------------------------------------------


def say(report: EntryReport, file_notes: Sequence[FieldNote], outcome: ImportOutcome) -> None:
    """Each entry in a dry run, else each kind of loss; then how many."""
    for note in file_notes:
        click.echo(f"{note.field}: {note.outcome}: {note.text}", err=not report.dry_run)
    if report.dry_run:
        _say_entries(report, outcome)
    else:
        for line in _loss_lines(report):
            click.echo(line, err=True)
    _hint_at_secrets(report)
    words = [
        f"{'would add' if report.dry_run else 'added'} {outcome.added}",
        f"{'update' if report.dry_run else 'updated'} {outcome.updated}",
    ]
    words += [f"unchanged {outcome.unchanged}"] if outcome.unchanged else []
    words += [f"skipped {len(report.skipped)}"] if report.skipped else []
    words += [f"wrong {report.wrong}"] if report.wrong else []
    click.echo(", ".join(words))


def _say_entries(report: EntryReport, outcome: ImportOutcome) -> None:
    for sequence, entry in enumerate(report.entries):
        if (action := outcome.actions.get(sequence)) is None:
            continue  # JSON Lines: nothing but the counts; or wrong, which was said
        words = {"add": "would add", "update": "would update", "unchanged": "unchanged"}[action]
        click.echo(f"{entry.where}: {entry.label}: {words}")
        if report.format.own:
            continue
        if entry.mapped:
            click.echo(f"    mapped: {', '.join(entry.mapped)}")
        for note in entry.notes:
            click.echo(f"    {note.outcome}: {note.field}: {note.text}")
    for candidate in report.skipped:
        click.echo(f"{candidate.where}: {candidate.label}: skipped: {candidate.skipped}")
        click.echo(f"    not mapped: {', '.join(candidate.skipped_fields)}")


def _loss_lines(report: EntryReport) -> Iterator[str]:
    """Skipped entries each with its line; of fields, each kind of loss with the first entry that has it."""
    for candidate in report.skipped:
        yield f"{candidate.where}: {candidate.label}: skipped: {candidate.skipped}"
    kinds: dict[tuple[FieldOutcome, str, str], list[Any]] = {}
    for entry in report.entries:
        for note in entry.notes:
            kind = kinds.setdefault((note.outcome, _INDEX.sub("[]", note.field), note.text), [0, entry])
            kind[0] += 1
    for (result, field, text), (count, first) in kinds.items():
        others = f" and {count - 1} more" if count > 1 else ""
        yield f"{first.where}: {first.label}{others}: {result}: {field}: {text}"


def _hint_at_secrets(report: EntryReport) -> None:
    named = [entry for entry in report.entries if _has_open_secret(entry.fields)]
    if not named or report.format.own:
        return
    which = ", ".join(f"{each.where} ({each.label})" for each in named[:SECRETS_SHOWN])
    more = f" and {len(named) - SECRETS_SHOWN} more" if len(named) > SECRETS_SHOWN else ""
    click.echo(
        f"hint: {which}{more}: secrets stand openly in headers, basic_auth or bearer_token; a reference such as "
        "${NAME} keeps them out of the database (README, Secrets)",
        err=True,
    )


def _has_open_secret(fields: ProjectFields) -> bool:
    values: Iterable[str] = [value for value in (fields.basic_auth, fields.bearer_token) if value is not None]
    headers = [value for name, value in (fields.headers or {}).items() if is_secret_header(name)]
    return any(value and not _refers(value) for value in (*values, *headers))


def _refers(text: str) -> bool:
    return any(match[1] is not None for match in REFERENCE.finditer(text))


def shows_progress() -> bool:
    return sys.stderr.isatty()
