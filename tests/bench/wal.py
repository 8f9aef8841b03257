"""What the WAL costs: CPU time of an append, and how fast it is read back.

    python -m tests.bench.wal                              the disk of the temporary directory
    python -m tests.bench.wal --directory /data --json wal.json

For each fsync policy and batch size a new stream is filled with ``--results`` results of ``--result-bytes`` each, one
append for each batch, as the worker does; encoding the results is not part of it.

    off         nobody syncs
    interval    a thread calls sync every 200 ms
    batch       a thread calls sync after each append, and the next append waits for it

    CPU per result   user and system time of this process, syncing thread included, by the number of results
    results/s        by the wall clock: with ``batch`` it is the disk's
    read back        sequentially in portions of 512 KiB, from the page cache, as after an outage of the database;
                     MB of bodies per second of CPU time, every CRC checked

What the kernel does later to bring pages to the disk is nobody's CPU time here.
"""

import argparse
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from cluster.bench.rig import machine
from cluster.wal.directory import WalDirectory
from cluster.wal.errors import WalError
from cluster.wal.format import Entry
from cluster.wal.log import StreamLog
from tests.bench.figures import bench_parser, write_figures

POLICIES = ("off", "interval", "batch")
BATCH_RESULTS = (6, 50, 400)
INTERVAL_S = 0.2
READ_BYTES = 512 << 10
SYNCED_APPENDS_MAX = 2_000  # with an fsync for each
MB = 1_000_000
STREAM_ID = "01890a5d-ac96-774b-bcce-b302099a8057"


class AppendFigures(msgspec.Struct):
    policy: str
    batch_results: int
    results: int
    cpu_us_per_result: float
    cpu_us_per_append: float
    results_per_s: float
    read_mb_per_cpu_s: float


class WalFigures(msgspec.Struct):
    result_bytes: int
    appends: list[AppendFigures]
    machine: dict[str, object] = {}


def run(directory: Path, *, results: int, result_bytes: int) -> WalFigures:
    figures = WalFigures(result_bytes, [])
    for policy in POLICIES:
        for batch_results in BATCH_RESULTS:
            count = results // batch_results
            if policy == "batch":
                count = min(count, SYNCED_APPENDS_MAX)
            root = Path(tempfile.mkdtemp(prefix="wal-", dir=directory))
            try:
                figures.appends.append(_measure(root, policy, batch_results, max(1, count), result_bytes))
            finally:
                shutil.rmtree(root)
    figures.machine = dict(machine())
    return figures


def _measure(root: Path, policy: str, batch_results: int, count: int, result_bytes: int) -> AppendFigures:
    wal = WalDirectory(root, worker="bench", limit_bytes=1 << 40, free_floor_bytes=0)
    log = wal.create(STREAM_ID)
    body = bytes(range(256)) * (batch_results * result_bytes // 256 + 1)
    body = body[: batch_results * result_bytes]
    batches = [
        [Entry(seq, body, batch_results, (seq - 1) * batch_results, (seq - 1) * len(body))]
        for seq in range(1, count + 1)
    ]
    with _syncing(policy, log) as appended:
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        for batch in batches:
            log.append(batch)
            appended()
        cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    read_s = _read_back(log, count * len(body))
    wal.close()
    results = count * batch_results
    return AppendFigures(
        policy,
        batch_results,
        results,
        round(cpu_s * 1e6 / results, 3),
        round(cpu_s * 1e6 / count, 1),
        round(results / wall_s),
        round(count * len(body) / MB / read_s),
    )


@contextmanager
def _syncing(policy: str, log: StreamLog) -> Iterator[Callable[[], None]]:
    """What is to be called after each append."""
    if policy == "off":
        yield lambda: None
        return
    wanted, done, end = threading.Semaphore(0), threading.Semaphore(0), threading.Event()

    def sync_always() -> None:
        while not end.wait(INTERVAL_S):
            log.sync()

    def sync_when_wanted() -> None:
        while wanted.acquire() and not end.is_set():
            log.sync()
            done.release()

    def appended() -> None:
        wanted.release()
        done.acquire()

    thread = threading.Thread(target=sync_always if policy == "interval" else sync_when_wanted)
    thread.start()
    try:
        yield (lambda: None) if policy == "interval" else appended
    finally:
        end.set()
        wanted.release()
        thread.join()


def _read_back(log: StreamLog, expected_bytes: int) -> float:
    """CPU seconds for all of it."""
    cpu_s = time.process_time()
    seq, size = 1, 0
    while part := log.read(seq, READ_BYTES):
        size += sum(len(entry.body) for entry in part)
        seq = part[-1].seq + 1
    cpu_s = time.process_time() - cpu_s
    if size != expected_bytes or log.damaged:
        raise WalError(f"{size} of {expected_bytes} bytes were read back")
    return cpu_s


def show(found: WalFigures, console: Console) -> None:
    table = Table(title=f"the WAL, results of {found.result_bytes} bytes")
    for name in (
        "fsync",
        "results in a batch",
        "CPU µs per result",
        "CPU µs per append",
        "results/s",
        "read back MB/s",
    ):
        table.add_column(name, justify="left" if name == "fsync" else "right")
    for each in found.appends:
        table.add_row(
            each.policy,
            str(each.batch_results),
            f"{each.cpu_us_per_result:g}",
            f"{each.cpu_us_per_append:g}",
            f"{each.results_per_s:,.0f}",
            f"{each.read_mb_per_cpu_s:,.0f}",
        )
    console.print(table)


def arguments_of(words: list[str] | None = None) -> argparse.Namespace:
    parser = bench_parser("wal", __doc__)
    parser.add_argument("--results", type=int, default=400_000, help="appended by each run")
    parser.add_argument("--result-bytes", type=int, default=170)
    parser.add_argument("--directory", type=Path, help="where to write; default: the temporary directory")
    return parser.parse_args(words)


def main(arguments: argparse.Namespace) -> WalFigures:
    directory = arguments.directory or Path(tempfile.gettempdir())
    return run(directory, results=arguments.results, result_bytes=arguments.result_bytes)


if __name__ == "__main__":
    chosen = arguments_of()
    try:
        result = main(chosen)
    except (WalError, OSError) as failure:
        sys.exit(f"wal: {failure}")
    show(result, Console())
    write_figures(chosen.json, result)
