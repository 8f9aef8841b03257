"""Many projects are granted a message at a time, so that telling all workers takes no long step of the loop."""

from collections import Counter

from cluster.messages import control
from coordinator.events import Send
from coordinator.link import WINDOW
from coordinator.member import BYTES_PER_MESSAGE
from coordinator.telling import WireGrants
from tests.coordinator.stage import Stage, record

WORKERS = 3
PROJECTS = 2_000
URL = "http://h/" + "x" * 2_000  # 4 MB in all: more than all windows take


def grants_in(effects):
    """Bytes of grants by receiver."""
    sizes: Counter[bytes] = Counter()
    for effect in effects:
        if isinstance(effect, Send) and isinstance(effect.message, WireGrants):
            sizes[effect.peer] += len(control.encode(effect.message))
    return sizes


def test_no_step_grants_a_worker_more_than_two_messages(monkeypatch):
    stage = Stage(workers=WORKERS)
    stage.records = {number: record(number, url=URL) for number in range(1, PROJECTS + 1)}
    largest = 0
    take = stage.take

    def watched(effects):
        nonlocal largest
        largest = max([largest, *grants_in(effects).values()])
        return take(effects)

    monkeypatch.setattr(stage, "take", watched)
    stage.running()

    assert BYTES_PER_MESSAGE < largest < 3 * BYTES_PER_MESSAGE < WINDOW * BYTES_PER_MESSAGE
    stage.assert_whole()
