"""Tables ``project_addresses`` and ``project_certificates``: what polls on new connections saw, when it was new.

A poll on a kept connection sees nothing anew and costs nothing here.  What was seen lately is kept in memory, at most
SEEN_MAX of it; the tables say what is new of the rest.  Memory follows the tables and never leads: it takes over what a
flush found after COMMIT.  Sightings of a project that is deleted are not stored.
"""

from collections.abc import Iterable

from cluster.database import Connection
from writer.records import PG_EPOCH_MS, ResultRecord

SEEN_MAX = 200_000  # about 30 MB

Sighting = tuple[int, str | int]  # project, and its address or its certificate's end in seconds since the epoch

_STORE_ADDRESSES = """
    INSERT INTO project_addresses (project_id, address, first_seen)
    SELECT s.id, s.address, s.at FROM unnest($1::bigint[], $2::text[], $3::timestamptz[]) AS s(id, address, at)
    WHERE EXISTS (SELECT FROM projects WHERE id = s.id)
    ON CONFLICT DO NOTHING
"""

_STORE_CERTIFICATES = """
    INSERT INTO project_certificates (project_id, expires_at, first_seen)
    SELECT s.id, to_timestamp(s.expires_s), s.at
    FROM unnest($1::bigint[], $2::bigint[], $3::timestamptz[]) AS s(id, expires_s, at)
    WHERE EXISTS (SELECT FROM projects WHERE id = s.id)
    ON CONFLICT DO NOTHING
"""


class Sightings:
    """What is known to be in the tables."""

    def __init__(self) -> None:
        self._seen: set[Sighting] = set()

    async def keep(self, conn: Connection, stored: Iterable[list[ResultRecord]]) -> set[Sighting]:
        """Store what these results saw for the first time; returns what ``remember`` is to be given after COMMIT."""
        addresses: dict[tuple[int, str], int] = {}
        certificates: dict[tuple[int, int], int] = {}
        seen = self._seen
        for records in stored:
            for record in records:
                result = record.result
                if result.connection_reused is not False:
                    continue
                project_id, address, expires_s = (
                    result.project_id,
                    result.remote_address,
                    result.certificate_expires_at_s,
                )
                if address is not None and (project_id, address) not in seen:
                    addresses.setdefault((project_id, address), result.polled_at_us)
                if expires_s is not None and (project_id, expires_s) not in seen:
                    certificates.setdefault((project_id, expires_s), result.polled_at_us)
        for statement, found in ((_STORE_ADDRESSES, addresses), (_STORE_CERTIFICATES, certificates)):
            if found:
                await conn.execute(
                    statement,
                    [project_id for project_id, _ in found],
                    [what for _, what in found],
                    [at_us - PG_EPOCH_MS * 1_000 for at_us in found.values()],
                )
        return {*addresses, *certificates}

    def remember(self, stored: set[Sighting]) -> None:
        if len(self._seen) + len(stored) > SEEN_MAX:
            self._seen.clear()
        if len(stored) <= SEEN_MAX:
            self._seen |= stored

    def forget(self) -> None:
        """The tables may be others, or older."""
        self._seen.clear()
