"""Figures of a run as tables for people and as JSON for programs.

Everything that was reported in a session is shown in the terminal's summary, whether its test passed or not; with
FAULTS_REPORT in the environment it is also appended to that file, one JSON object per line.
"""

import io
import os
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

WIDTH = 140
_reported = []


def report(title, figures, *tables):
    """``figures``: a Struct or a dict; ``tables`` as from below."""
    _reported.append((title, tables))
    path = os.environ.get("FAULTS_REPORT")
    if path:
        line = msgspec.json.encode({"title": title, "figures": msgspec.to_builtins(figures)})
        with Path(path).open("ab") as file:
            file.write(line + b"\n")


def summary():
    """Everything reported so far as text."""
    text = io.StringIO()
    console = Console(file=text, width=WIDTH)
    for title, tables in _reported:
        console.print(title, markup=False)
        for table in tables:
            console.print(table)
    return text.getvalue()


def table_of(title, columns, rows):
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*("-" if value is None else str(value) for value in row))
    return table


def campaign_tables(campaign):
    """By kind of fault: how often, the widest gap, the longest times; and the books."""
    kinds = {}
    for each in campaign.faults:
        kinds.setdefault(each.kind, []).append(each)
    rows = []
    for kind, some in sorted(kinds.items()):
        detected = [each.detected_s for each in some if each.detected_s is not None]
        promised = [each.gap_promised_s for each in some]
        rows.append(
            (
                kind,
                len(some),
                max(each.gap_s for each in some),
                None if None in promised else round(max(promised), 1),
                max(each.stall_s for each in some),
                max(detected, default=None),
                max(each.caught_up_s for each in some),
                sum(len(each.wrong) for each in some) or None,
            )
        )
    faults = table_of(
        "by kind of fault, worst of each, in seconds",
        ("fault", "times", "widest gap", "promised", "machine stalled", "to detect", "to catch up", "wrong"),
        rows,
    )
    verdict = campaign.verdict
    if verdict is None:
        return (faults,)
    fields = msgspec.structs.asdict(verdict)
    shown = [(name.replace("_", " "), value) for name, value in fields.items() if name not in {"examples", "missed"}]
    shown += [(f"missed {reason}", ticks) for reason, ticks in sorted(verdict.missed.items())]
    return faults, table_of("books", ("", ""), shown)
