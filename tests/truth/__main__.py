"""The table of cases: what happens, what curl says, what a result says, and why where they differ.

    python -m tests.truth                # as Markdown
    python -m tests.truth --json         # as JSON
    python -m tests.truth --only TLS     # cases with that in their name
    python -m tests.truth --phases       # phase times instead: what the servers did, and what each engine says

Exit status 1 when an engine says something else than the case, or curl differs without a reason or a reason without a
difference; these rows are marked.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path

import uvloop

from tests.truth import curl
from tests.truth.cases import CASES
from tests.truth.phases import PHASE_CASES, PHASES, measure
from tests.truth.runs import ENGINES, Row, run_all, shown
from tests.truth.servers import Certificates


def entry(row: Row) -> dict[str, object]:
    case = row.case
    return {
        "case": case.name,
        "curl": None if row.oracle is None else row.oracle.shown(),
        "ours": {engine: shown(outcome) for engine, outcome in row.ours.items()},
        "why": case.differs,
        "wrong": "; ".join(row.wrong()),
    }


def markdown(entries: list[dict[str, object]]) -> str:
    version = curl.version()
    lines = [
        f"{len(entries)} cases; curl {version}" if version else f"{len(entries)} cases; no curl on this machine",
        "",
        "| case | curl | ours | why we say otherwise |",
        "|---|---|---|---|",
    ]
    for each in entries:
        ours = each["ours"]
        assert isinstance(ours, dict)
        said = " / ".join(dict.fromkeys(ours.values()))
        why = f"**WRONG: {each['wrong']}**" if each["wrong"] else each["why"]
        cells = (each["case"], each["curl"] or "not asked", said, why)
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def phase_rows() -> list[dict[str, object]]:
    """Each case as it came out once: on a busy machine some may be out of tolerance, which the tests then repeat."""
    certificates = Certificates()
    rows: list[dict[str, object]] = []
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for case in PHASE_CASES:
            for engine in ENGINES:
                found = runner.run(measure(case, engine, certificates))
                values = {name: [_rounded(found.done[name]), _rounded(found.said[name])] for name in PHASES}
                values["the whole"] = [_rounded(found.whole_done), _rounded(found.whole_said)]
                rows.append({"case": case.name, "engine": engine, **values, "out_of_tolerance": sorted(found.off())})
    return rows


def _rounded(duration_ms: float | None) -> float | None:
    return None if duration_ms is None else round(duration_ms, 1)


def phases_markdown(rows: list[dict[str, object]]) -> str:
    names = [*PHASES, "the whole"]
    lines = [
        "Milliseconds: what the server did / what the result says (-: NULL).",
        "",
        f"| case | engine | {' | '.join(names)} | out of tolerance |",
        "|---" * (len(names) + 3) + "|",
    ]
    for row in rows:
        cells = []
        for name in names:
            pair = row[name]
            assert isinstance(pair, list)
            cells.append(" / ".join("-" if each is None else f"{each:.1f}" for each in pair))
        off = row["out_of_tolerance"]
        assert isinstance(off, list)
        lines.append(f"| {row['case']} | {row['engine']} | {' | '.join(cells)} | {', '.join(off)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.truth", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    parser.add_argument("--only", metavar="TEXT", default="", help="cases with this in their name")
    parser.add_argument("--phases", action="store_true", help="phase times: what the servers did and what we say")
    options = parser.parse_args()
    if options.phases:
        rows = phase_rows()
        print(json.dumps(rows, indent=1) if options.json else phases_markdown(rows))
        return 0
    cases = [case for case in CASES if options.only in case.name]
    if not cases:
        parser.error(f"no case has {options.only!r} in its name")
    with (
        tempfile.TemporaryDirectory() as folder,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        found = runner.run(run_all(cases, Path(folder), with_curl=curl.version() is not None))
    entries = [entry(row) for row in found.values()]
    if len(entries) < len(cases):
        print(f"{len(cases) - len(entries)} cases left out: no IPv6 on this machine's loopback", file=sys.stderr)
    print(json.dumps(entries, indent=1, ensure_ascii=False) if options.json else markdown(entries))
    bad = [each for each in entries if each["wrong"]]
    if bad:
        print(f"{len(bad)} of {len(entries)} cases are not as stated", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
