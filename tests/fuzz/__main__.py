"""``python -m tests.fuzz response|project --seconds 600 [--corpus DIR]``: one fuzzer for as long as wanted.

With atheris installed (``pip install ringpoll[fuzz]``; it has wheels for some versions of Python only) it is guided by
which lines and branches of our code an input reaches; without it hypothesis makes the inputs, and it says so.  A crash
ends it with the input, a hang is an input that takes longer than ``HANG_S``.  Exit status 0: neither.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz.answers import Stage
from tests.fuzz.projects import check_row, check_written
from tests.fuzz.seeds import write_seeds
from tests.fuzz.strategies import row_specs, scripts, written_maps

HANG_S = 20
PART_EXAMPLES = 500
INPUT_BYTES_MAX = 8_192


def silent(check):
    """A test must return nothing."""

    def checked(value):
        check(value)

    return checked


def with_hypothesis(what, seconds):
    quiet = settings(
        max_examples=PART_EXAMPLES,
        deadline=HANG_S * 1_000,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    stage = Stage()
    checks = {
        "response": [(scripts(), stage.play)],
        "project": [(written_maps, check_written), (row_specs, check_row)],
    }[what]
    parts = [quiet(given(strategy)(silent(check))) for strategy, check in checks]
    until = time.monotonic() + seconds
    count = 0
    while time.monotonic() < until:
        for part in parts:
            part()
            count += PART_EXAMPLES
    stage.close()
    print(f"{what}: about {count} inputs by hypothesis in {seconds:g} s, no crash, no hang")
    return 0


def with_atheris(what, seconds, corpus):
    """In a process of its own, since libFuzzer ends the one it runs in."""
    corpus = Path(corpus or tempfile.mkdtemp(prefix="fuzz-"))
    corpus.mkdir(parents=True, exist_ok=True)
    write_seeds(what, corpus)
    command = [sys.executable, "-m", "tests.fuzz.guided", what, str(corpus), f"-max_total_time={seconds:g}"]
    command += [f"-timeout={HANG_S}", f"-max_len={INPUT_BYTES_MAX}", "-len_control=0", "-print_final_stats=1"]
    command += [f"-artifact_prefix={corpus.parent}{os.sep}{corpus.name}-found-"]
    return subprocess.run(command, check=False).returncode


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("what", choices=["response", "project"])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--corpus", help="a directory that keeps the inputs which reached something new")
    parser.add_argument("--hypothesis", action="store_true", help="even if atheris is installed")
    arguments = parser.parse_args()
    if not arguments.hypothesis and importlib.util.find_spec("atheris") is not None:
        return with_atheris(arguments.what, arguments.seconds, arguments.corpus)
    why = "as asked for" if arguments.hypothesis else "atheris is not installed"
    print(f"inputs are made by hypothesis, without the guidance of coverage: {why}", flush=True)
    return with_hypothesis(arguments.what, arguments.seconds)


if __name__ == "__main__":
    sys.exit(main())
