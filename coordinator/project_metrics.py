"""Series of single projects for Prometheus (``--project-metrics N``): none by default, and never of more than N.

- The N projects are those that are enabled, the first by id; which these are is decided anew with each reading.
- They are read from the database on a timer, on a connection of their own, and never by a scrape.  A reading rests
  ``REST`` times as long as it took, so it takes at most 1/20 of one connection's time however many projects and
  however slow the database is.
- What could not be read again within ``STALE_S`` (or two readings, where they are farther apart) is no longer told: a
  gap rather than a value that may be wrong.

The database being away is the trouble of these series alone: it is logged, and polling has nothing to do with it.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator

import msgspec
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cluster.database import DATABASE_ERRORS, Connection, connect, describe
from cluster.errors import ClusterError
from coordinator.throttle import ThrottledLog

PAUSE_S = 15.0
REST = 20.0
STALE_S = 60.0
CONNECT_TIMEOUT_S = 5.0
QUERY_TIMEOUT_S = 30.0
LABELS = ("project", "name")

logger = logging.getLogger("coordinator.project_metrics")

# A project without a state has not failed since it was first polled.  Looked at is what three intervals would bring, an
# hour at least: a lookup of the newest row touches one or two result partitions, not all there are.
_SELECT = """
    SELECT p.id, p.name, extract(epoch FROM s.since)::float8 AS since_s, s.state,
           extract(epoch FROM r.polled_at)::float8 AS polled_s, r.response_time_ms,
           (SELECT extract(epoch FROM c.expires_at)::float8 FROM project_certificates c
            WHERE c.project_id = p.id ORDER BY c.first_seen DESC, c.expires_at DESC LIMIT 1) AS expires_s
    FROM projects p
    LEFT JOIN project_states s ON s.project_id = p.id
    LEFT JOIN LATERAL (
        SELECT polled_at, response_time_ms FROM poll_results
        WHERE project_id = p.id AND scheduled_at
              > now() - greatest(3 * ringpoll_interval_ms(p.interval, p.unit), 3600000) * interval '1 millisecond'
        ORDER BY scheduled_at DESC LIMIT 1) r ON true
    WHERE p.enabled ORDER BY p.id LIMIT $1"""


class ProjectSample(msgspec.Struct, frozen=True, gc=False):
    id: int
    name: str
    up: bool | None  # None: no result yet, or none lately
    since_s: float | None  # of the state; None: from the beginning
    polled_s: float | None
    response_s: float | None  # None: no answer
    expires_s: float | None  # of the certificate seen last


_FAMILIES: tuple[tuple[str, str, Callable[[ProjectSample], float | None]], ...] = (
    ("ringpoll_project_up", "1 when the project is up, 0 when it is down.", lambda p: p.up),
    (
        "ringpoll_project_state_since_timestamp_seconds",
        "When the project came into its state; missing: from its beginning.",
        lambda p: p.since_s,
    ),
    ("ringpoll_project_last_poll_timestamp_seconds", "When its newest poll started.", lambda p: p.polled_s),
    (
        "ringpoll_project_last_response_seconds",
        "Response time of its newest poll; missing when there was no answer.",
        lambda p: p.response_s,
    ),
    (
        "ringpoll_project_certificate_expiry_timestamp_seconds",
        "When the certificate that was seen last expires.",
        lambda p: p.expires_s,
    ),
)


class ProjectMetrics(Collector):
    """``run`` reads until it is cancelled; scrapes get what was read last."""

    def __init__(self, url: str, projects_max: int) -> None:
        assert projects_max > 0
        self._url = url
        self._projects_max = projects_max
        self._samples: list[ProjectSample] = []
        self._read_s = 0.0  # on the monotonic clock; 0: never
        self._took_s = 0.0
        self._throttled = ThrottledLog(logger, every_s=60.0)

    async def run(self) -> None:
        connection: Connection | None = None
        try:
            while True:
                try:
                    if connection is None or connection.is_closed():
                        connection = await connect(self._url, timeout_s=CONNECT_TIMEOUT_S)
                    await self.read(connection)
                except (ClusterError, *DATABASE_ERRORS) as error:
                    why = str(error) if isinstance(error, ClusterError) else describe(error)
                    self._throttled.warning(f"the metrics of single projects could not be read: {why}")
                    if connection is not None:
                        connection.terminate()
                        connection = None
                await asyncio.sleep(max(PAUSE_S, REST * self._took_s))
        finally:
            if connection is not None:
                connection.terminate()

    async def read(self, connection: Connection) -> None:
        began_s = time.monotonic()
        rows = await connection.fetch(_SELECT, self._projects_max, timeout=QUERY_TIMEOUT_S)
        samples = [
            ProjectSample(
                row["id"],
                row["name"],
                None if row["polled_s"] is None else row["state"] != "down",
                row["since_s"],
                row["polled_s"],
                None if row["response_time_ms"] is None else row["response_time_ms"] / 1000,
                row["expires_s"],
            )
            for row in rows
        ]
        self.take(samples, time.monotonic() - began_s)

    def take(self, samples: list[ProjectSample], took_s: float) -> None:
        """What was read just now."""
        self._samples = samples
        self._read_s = time.monotonic()
        self._took_s = took_s

    def describe(self) -> Iterator[Metric]:
        return iter(())  # registering must not collect

    def collect(self) -> Iterator[Metric]:
        age_s = time.monotonic() - self._read_s if self._read_s else None
        fresh = age_s is not None and age_s <= max(STALE_S, 2 * REST * self._took_s)
        samples = self._samples if fresh else []
        yield GaugeMetricFamily(
            "ringpoll_project_metrics_projects", "Projects that have series of their own now.", value=len(samples)
        )
        if age_s is not None:
            yield GaugeMetricFamily(
                "ringpoll_project_metrics_age_seconds", "How long ago these series were read.", value=age_s
            )
            yield GaugeMetricFamily(
                "ringpoll_project_metrics_read_seconds", "How long the last reading took.", value=self._took_s
            )
        for name, text, read in _FAMILIES:
            family = GaugeMetricFamily(name, text, labels=LABELS)
            for sample in samples:
                value = read(sample)
                if value is not None:
                    family.add_metric([str(sample.id), sample.name], value)
            yield family
