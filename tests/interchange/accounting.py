"""The law of every reader: each entry of a file, and each field of each entry, is accounted for."""

from cluster.interchange.model import FieldOutcome
from cluster.project import project_from_map


def accounted(imported):
    """The candidates as a list, after looking whether each is one thing only and valid."""
    candidates = list(imported.candidates)
    for each in candidates:
        said = [each.project is not None, each.skipped is not None, each.wrong is not None]
        assert sum(said) == 1, each
        if each.project is not None:
            assert not each.skipped_fields
    return candidates


def fields_said(candidate):
    """Each field that the report names, with what became of it."""
    said = dict.fromkeys(candidate.mapped, "mapped")
    said |= {note.field: str(note.outcome) for note in candidate.notes}
    return said | dict.fromkeys(candidate.skipped_fields, "not mapped")


def unaccounted(entry, candidate, *, nested=()):
    """The fields of an entry of the source that the report does not name.

    ``nested``: maps and lists whose own fields have to be named as well.
    """
    said = fields_said(candidate)
    missing = [name for name in entry if name not in said]
    if candidate.project is None:
        return missing
    for name in nested:
        value = entry.get(name)
        if isinstance(value, dict):
            missing += [f"{name}.{each}" for each in value if f"{name}.{each}" not in said]
        elif isinstance(value, list):
            for at, each in enumerate(value):
                keys = [f"{name}[{at}].{key}" for key in each] if isinstance(each, dict) else [f"{name}[{at}]"]
                missing += [key for key in keys if key not in said]
    return missing


def notes_of(candidate, outcome=None):
    return {note.field: note.text for note in candidate.notes if outcome in {None, note.outcome}}


def lost(candidate):
    return notes_of(candidate, FieldOutcome.NOT_MAPPED)


def approximated(candidate):
    return notes_of(candidate, FieldOutcome.APPROXIMATED)


def valid(candidate):
    return project_from_map(candidate.project)
