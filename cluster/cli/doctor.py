"""``cluster doctor``: is everything here as a cluster needs it, and what to do where it isn't.  Changes nothing."""

from typing import Any

import click
import msgspec
import orjson

from cluster.cli.options import ALL, with_settings
from cluster.doctor.catalogue import Finding
from cluster.doctor.gathering import gather
from cluster.doctor.judging import judge
from cluster.errors import ExitCode
from cluster.settings import Settings

LEVELS = ("problem", "warning", "ok")


@click.command()
@with_settings(*ALL)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(settings: Settings, as_json: bool) -> int:
    """Check limits, port, disk, clock, database and versions; say what to do.

    Takes the options of `up`, and judges for these. Each check is ok, a warning or a problem; the exit status is 1 when
    there is a problem. Nothing is changed, and it takes 15 seconds at most, whatever hangs.
    """
    found = judge(gather(settings))
    if as_json:
        click.echo(orjson.dumps(doctor_document(found), option=orjson.OPT_INDENT_2))
    else:
        from cluster.cli import doctor_view, render  # noqa: PLC0415 - rich is slow to import

        render.show(doctor_view.findings_view(found))
    return int(ExitCode.FAILED if any(each.level == "problem" for each in found) else ExitCode.DONE)


def doctor_document(found: list[Finding]) -> dict[str, Any]:
    counts = {f"{level}s" if level != "ok" else level: sum(each.level == level for each in found) for level in LEVELS}
    return counts | {"findings": [{"check": each.check} | msgspec.structs.asdict(each) for each in found]}


COMMANDS: list[Any] = [doctor]
