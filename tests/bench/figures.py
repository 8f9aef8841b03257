"""What every benchmark of this folder does alike: how it is called, and that its figures go to a file when asked."""

import argparse
from pathlib import Path

import msgspec


def bench_parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Of ``python -m tests.bench.NAME``, described by the first line of its module's docstring."""
    assert doc is not None
    parser = argparse.ArgumentParser(prog=f"python -m tests.bench.{name}", description=doc.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    return parser


def write_figures(path: Path | None, figures: object) -> None:
    """As JSON, for people to read; nothing without a path."""
    if path is not None:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(figures)) + b"\n")
