"""Targets that mean harm cost their own projects a result each, and nobody else anything."""

from tests.truth.hostile import OPTIONS, ORDINARY_PROJECTS, WORKERS, HostileRun
from tests.truth.hostile_target import ENDS

RSS_ROOM_MIB = 40  # measured: 14 above the start, of which 3 without any hostile target; 55 before reading was bounded
# The promise is 50, for which there is `python -m tests.truth.hostile`; the default suite runs beside other things.
# Measured: 4 to 17 on two cores that others use; 2 to 6 without any hostile target; 230 before reading was bounded.
LATENESS_P99_MS = 200.0


def test_two_hundred_hostile_targets_beside_a_thousand_ordinary(make_cluster, sql):
    cluster = make_cluster(workers=WORKERS, options=OPTIONS)
    found = HostileRun(cluster, sql).go(20.0)
    restarted = {name: pids for name, pids in found.pids.items() if len(pids) != 1}
    assert not restarted
    assert len(found.pids) == WORKERS
    mib = {name: (found.rss_first_mib[name], most) for name, most in found.rss_most_mib.items()}
    assert all(most < first + RSS_ROOM_MIB for first, most in mib.values()), mib
    assert found.ordinary_polls > 2 * ORDINARY_PROJECTS
    assert found.ordinary_failed == 0
    assert {row["behaviour"] for row in found.ends} == set(ENDS)
    assert found.wrong_ends() == []
    assert cluster.complaints() == []
    cluster.check_audit()
    assert found.lateness_p99_ms < LATENESS_P99_MS, found
