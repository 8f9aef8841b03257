"""200 projects whose targets mean harm beside 1,000 ordinary ones, on a real cluster: what do the ordinary ones feel?

``HostileRun`` is one such run: it puts the projects into the table, watches the workers from outside (pids and loop lag
from ``/status``, resident memory from the system), and reads lateness and ends from the rows.  ``python -m
tests.truth.hostile [SECONDS]`` makes one without the hostile and one with them, and prints what it found; the promise
is a p99 of the ordinary projects' lateness below 50 ms.
"""

import contextlib
import itertools
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import psutil

from cluster.embedded import EmbeddedPostgres
from tests.integration.harness import Cluster, Sql, wait_until
from tests.truth.hostile_target import BEHAVIOURS, ENDS, NOT_ACCEPTING, SOCKETS

HOSTILE_PROJECTS = 200
ORDINARY_PROJECTS = 1_000
WORKERS = 2
OPTIONS = ("--max-concurrent-http", "1000")
SAMPLE_S = 0.25
WARM_UP_S = 3.0  # the first connections of 1,000 projects, which are all new, are not what is measured

_INSERT = (
    "INSERT INTO projects (name, url, interval, timeout_ms, headers)"
    " SELECT name, url, interval, timeout_ms, headers::jsonb"
    " FROM unnest($1::text[], $2::text[], $3::int[], $4::int[], $5::text[])"
    " AS new(name, url, interval, timeout_ms, headers)"
)
_LATENESS = (
    "SELECT extract(epoch FROM polled_at - scheduled_at) * 1000 AS ms"
    " FROM poll_results JOIN projects ON id = project_id"
    " WHERE name LIKE 'ordinary%' AND trigger = 'tick' AND scheduled_at >= to_timestamp($1) ORDER BY 1"
)
_ENDS = (
    "SELECT split_part(name, '.', 2) AS behaviour, split_part(name, '.', 3) AS engine, error_code, status_code,"
    " count(*) AS polls, max(size_bytes) AS size_max"
    " FROM poll_results JOIN projects ON id = project_id WHERE name LIKE 'hostile%' GROUP BY 1, 2, 3, 4"
)


class Found(NamedTuple):
    lateness_p50_ms: float
    lateness_p99_ms: float
    lateness_max_ms: float
    ordinary_polls: int
    ordinary_failed: int
    rss_first_mib: dict
    rss_most_mib: dict
    loop_lag_max_ms: float
    cpu_s_per_s: float  # of all workers
    pids: dict  # worker -> every pid it had
    ends: list  # rows of what the hostile projects' polls came to

    def wrong_ends(self):
        """What a poll said that its target did not do, and behaviours without any result."""
        seen = {(row["behaviour"], row["engine"]) for row in self.ends}
        silent = [pair for pair in itertools.product(ENDS, ("lean", "aiohttp")) if pair not in seen]
        wrong = [tuple(row.values()) for row in self.ends if row["error_code"] not in ENDS[row["behaviour"]]]
        return wrong + silent


def hostile_rows(target, count):
    """(name, url, interval, timeout_ms, headers): every behaviour with either engine, by turns."""
    urls = {each.__name__: f"http://127.0.0.1:{target['port']}/{each.__name__}/x" for each in BEHAVIOURS}
    urls |= {each.__name__: f"{SOCKETS[each][0]}://127.0.0.1:{target['sockets'][each.__name__]}/" for each in SOCKETS}
    urls[NOT_ACCEPTING] = f"http://127.0.0.1:{target['sockets'][NOT_ACCEPTING]}/"
    kinds = itertools.cycle(itertools.product(("lean", "aiohttp"), urls.items()))
    for number, (engine, (name, url)) in zip(range(count), kinds, strict=False):
        headers = json.dumps({"Upgrade": "x"}) if engine == "aiohttp" else None
        yield f"hostile.{name}.{engine}.{number}", url, 5 + number % 6, 2_000 + number % 4 * 1_000, headers


def ordinary_rows(port, count):
    for number in range(count):
        yield f"ordinary.{number}", f"http://127.0.0.1:{port}/{number}", 5 + number % 6, 5_000, None


@contextlib.contextmanager
def served(module):
    """A target in a process of its own: the first line it prints, decoded."""
    process = subprocess.Popen([sys.executable, "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield json.loads(process.stdout.readline())
    finally:
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


class HostileRun:
    """One run on a started, ready cluster; ``sql`` is a connection to its database."""

    def __init__(self, cluster, sql):
        self._cluster = cluster
        self._sql = sql
        self._rss = defaultdict(list)
        self._lag_ms = []
        self._pids = defaultdict(set)

    def go(self, seconds, *, hostile=HOSTILE_PROJECTS, ordinary=ORDINARY_PROJECTS):
        self._sample()
        cpu_began = self._cpu_s()
        with served("cluster.bench.target") as port, served("tests.truth.hostile_target") as target:
            rows = [*ordinary_rows(port, ordinary), *hostile_rows(target, hostile)]
            self._sql.execute(_INSERT, *map(list, zip(*rows, strict=True)))
            wait_until(lambda: self._cluster.status()["active_projects"] == len(rows), "all projects to be polled")
            began = time.time()
            while time.time() < began + seconds:
                time.sleep(SAMPLE_S)
                self._sample()
            cpu_s = (self._cpu_s() - cpu_began) / (time.time() - began)
            # The polls in flight end, and their results are committed, while their targets are still there.
            exit_status = self._cluster.stop()
            assert exit_status == 0, f"exit status {exit_status}: {self._cluster.log_tail()}"
        return self._found(began + WARM_UP_S, cpu_s)

    def _sample(self):
        for worker in self._cluster.status()["workers"]:
            self._pids[worker["name"]].add(worker["pid"])
            with contextlib.suppress(psutil.NoSuchProcess):
                self._rss[worker["name"]].append(psutil.Process(worker["pid"]).memory_info().rss / (1 << 20))
            self._lag_ms.append(worker["loop_lag_ms"] or 0.0)

    def _cpu_s(self):
        total = 0.0
        for worker in self._cluster.status()["workers"]:
            times = psutil.Process(worker["pid"]).cpu_times()
            total += times.user + times.system
        return total

    def _found(self, since, cpu_s):
        late = [row["ms"] for row in self._sql.fetch(_LATENESS, since)]
        assert late, "no ordinary project was polled"
        failed = self._sql.value(
            "SELECT count(*) FROM poll_results JOIN projects ON id = project_id"
            " WHERE name LIKE 'ordinary%' AND status <> 'success'"
        )
        return Found(
            lateness_p50_ms=round(float(late[len(late) // 2]), 1),
            lateness_p99_ms=round(float(late[math.ceil(len(late) * 0.99) - 1]), 1),
            lateness_max_ms=round(float(late[-1]), 1),
            ordinary_polls=len(late),
            ordinary_failed=failed,
            rss_first_mib={name: round(sizes[0], 1) for name, sizes in self._rss.items()},
            rss_most_mib={name: round(max(sizes), 1) for name, sizes in self._rss.items()},
            loop_lag_max_ms=round(max(self._lag_ms), 1),
            cpu_s_per_s=round(cpu_s, 2),
            pids=dict(self._pids),
            ends=self._sql.fetch(_ENDS),
        )


def main(seconds):
    for hostile in (0, HOSTILE_PROJECTS):
        base = Path(tempfile.mkdtemp(prefix="rp-"))
        base.chmod(0o755)  # as root the server runs under another account, which must reach it
        server = EmbeddedPostgres(base / "pg")
        try:
            server.start()
            cluster = Cluster(base / "d", server.dsn(), workers=WORKERS, options=OPTIONS)
            try:
                cluster.start().wait_ready()
                sql = Sql(server.dsn())
                try:
                    found = HostileRun(cluster, sql).go(seconds, hostile=hostile)
                    law_holds = cluster.audit()[0] == 0
                finally:
                    sql.close()
            finally:
                cluster.end()
        finally:
            server.stop()
            shutil.rmtree(base, ignore_errors=True)
        print(f"{hostile} hostile projects beside {ORDINARY_PROJECTS} ordinary ones, {seconds:g} s")
        for name, value in found._asdict().items():
            if name != "ends":
                print(f"  {name}: {value}")
        print(f"  accounting law holds: {law_holds}")
        if hostile:
            print(f"  ends that were not expected: {found.wrong_ends()}")
            for row in sorted(found.ends, key=lambda row: (row["behaviour"], row["engine"])):
                print("  ", *row.values())


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 25.0)
