"""How the findings of ``cluster doctor`` look on a terminal."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cluster.doctor.catalogue import Finding

_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def findings_view(found: Sequence[Finding]) -> RenderableType:
    """A line each, the remedy below; at the end how many of each kind."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for each in found:
        style = _STYLES[each.level]
        what = Text(each.what)
        if each.where:
            what.append(f"  [{each.where}]", "dim")
        table.add_row(Text(each.level, style), Text(each.check.replace("_", " ")), what)
        if each.remedy:
            table.add_row("", "", Text.assemble(("do: ", "bold"), each.remedy))
    counts = {level: sum(each.level == level for each in found) for level in ("problem", "warning", "ok")}
    words = [
        f"{counts['problem']} problem{'s' * (counts['problem'] != 1)}",
        f"{counts['warning']} warning{'s' * (counts['warning'] != 1)}",
        f"{counts['ok']} ok",
    ]
    worst = next((level for level, count in counts.items() if count), "ok")
    return Group(table, Text(""), Text(", ".join(words), _STYLES[worst]))
