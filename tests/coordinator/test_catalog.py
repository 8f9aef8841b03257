"""The project list is a diff, and weights do not drift."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.messages.control import RemovedProject
from cluster.project import ProjectSpec, encode_spec
from cluster.ticks import PARTITIONS, partition_of
from coordinator.catalog import Catalog
from coordinator.events import ProjectRecord


def record(project_id, interval_ms=1_000, url="http://h/"):
    spec = ProjectSpec(project_id, url, interval_ms, 0)
    return ProjectRecord(project_id, 1_000 / interval_ms, encode_spec(spec))


def test_only_what_changed_is_told():
    catalog = Catalog()
    assert catalog.put(record(1)) == (partition_of(1), True)
    assert catalog.put(record(1)) is None
    assert catalog.put(record(1, url="http://other/")) == (partition_of(1), False)
    assert catalog.remove(RemovedProject(1, 0)) == partition_of(1)
    assert catalog.remove(RemovedProject(1, 0)) is None


def test_it_knows_what_it_holds():
    catalog = Catalog()
    for project_id in (1, 2, 3):
        catalog.put(record(project_id))
    assert catalog.count == 3
    assert catalog.ids() == {1, 2, 3}
    assert 2 in catalog
    assert 4 not in catalog
    assert catalog.blob(2) == record(2).blob
    assert catalog.blob(4) is None
    assert catalog.blobs(partition_of(3)) == [record(3).blob]
    assert catalog.size(partition_of(3)) == 1


operations = st.lists(
    st.tuples(
        st.integers(min_value=1, max_value=40),
        st.sampled_from([1_000, 3_000, 7_000, 60_000, 86_400_000]),
        st.booleans(),
    ),
    max_size=120,
)


@given(operations)
def test_weights_are_those_of_the_projects_it_holds(steps):
    catalog = Catalog()
    held = {}
    for project_id, interval_ms, keep in steps:
        if keep:
            catalog.put(record(project_id, interval_ms))
            held[project_id] = interval_ms
        else:
            catalog.remove(RemovedProject(project_id, 0))
            held.pop(project_id, None)
    assert catalog.count == len(held)
    expected = [0.0] * PARTITIONS
    for project_id, interval_ms in held.items():
        expected[partition_of(project_id)] += 1_000 / interval_ms
    for partition, weight in enumerate(expected):
        assert abs(catalog.weights[partition] - weight) < 1e-9
        assert catalog.weights[partition] >= 0
        if not catalog.size(partition):
            assert catalog.weights[partition] == 0.0, "an empty partition weighs nothing, to the last bit"
