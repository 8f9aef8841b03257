"""Takes down what a benchmark has left behind that was killed: its cluster, its database, its directory.

``python -m cluster.bench.guard DIRECTORY`` is started by the rig before anything else.  Its standard input is one line,
``[URL, NAME]`` of a database to be dropped or ``null``, and then nothing until the benchmark has ended.  Then it does
what the benchmark would have done, if the directory is still there; whatever runs on that directory is ended at once.
What it could not do, it says in one line on standard error.
"""

import asyncio
import contextlib
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import msgspec
import psutil

from cluster import database
from cluster.embedded import cluster_database
from cluster.errors import ClusterError

END_S = 20.0  # for `cluster up` to end its roles, and for PostgreSQL to end
END_TWICE = (signal.SIGINT, signal.SIGTERM)  # the second one ends `cluster up` at once; PostgreSQL ends with the first
PASSES_MAX = 3
LOOK_S = 0.05


class BenchGuard:
    """The benchmark's side: as long as this process lives, the guard waits."""

    def __init__(self, directory: Path, drop: tuple[str, str] | None, environ: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cluster.bench.guard", str(directory)],
            stdin=subprocess.PIPE,
            env=environ,
            start_new_session=True,  # no ^C from a terminal, no signal that is meant for our process group
        )
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(drop) + b"\n")
        self._process.stdin.flush()

    def close(self) -> None:
        self._process.communicate()


def processes_on(directory: Path) -> list[psutil.Process]:
    """``cluster`` commands with this data directory, then PostgreSQL servers (and initdb) below it."""
    commands, servers = [], []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            words = process.cmdline()
            options = set(pairwise(words))
            if ("--data-dir", str(directory)) in options:
                commands.append(process)
            elif any(name == "-D" and directory in Path(value).parents for name, value in options):
                servers.append(process)
    return [*commands, *servers]


def has_ended(process: psutil.Process) -> bool:
    """Its parent was killed, and not every container has an init that reaps it."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def end_processes(processes: list[psutil.Process]) -> None:
    """In this order: a cluster would start its server again."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            for number in END_TWICE:
                process.send_signal(number)
        until = time.monotonic() + END_S
        while time.monotonic() < until and not has_ended(process):
            time.sleep(LOOK_S)
        if has_ended(process):
            continue
        with contextlib.suppress(psutil.NoSuchProcess):
            for each in (*process.children(recursive=True), process):
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()


async def drop_database(server_url: str, name: str) -> None:
    conn = await database.connect(server_url)
    try:
        await conn.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    finally:
        await conn.close()


def take_down(directory: Path, drop: tuple[str, str] | None) -> list[str]:
    """Returns what could not be done."""
    said = []
    for _ in range(PASSES_MAX):  # one that was only just being started is not found at first
        if not (found := processes_on(directory)):
            break
        end_processes(found)
    shutil.rmtree(cluster_database(directory).run, ignore_errors=True)  # it is elsewhere when the path is long
    shutil.rmtree(directory, ignore_errors=True)
    if directory.exists():
        said.append(f"could not remove {directory}; remove it")
    if drop is not None:
        url, name = drop
        try:
            asyncio.run(drop_database(url, name))
        except (ClusterError, *database.DATABASE_ERRORS) as error:
            said.append(f"could not drop database {name} on {database.place(url)}; drop it: {database.describe(error)}")
    return said


def main(directory: Path) -> int:
    line = sys.stdin.buffer.readline()
    drop = msgspec.json.decode(line, type=tuple[str, str] | None) if line.endswith(b"\n") else None
    sys.stdin.buffer.read()
    if not directory.exists():
        return 0
    said = take_down(directory, drop)
    for each in said:
        sys.stderr.write(f"the benchmark was killed: {each}\n")
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
