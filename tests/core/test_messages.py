"""Bytes of somebody else's choosing never end a process: a decoder raises what every receiver catches, or decodes."""

import random

import pytest

from cluster.messages import UNDECODABLE, control, results

DECODERS = {
    "to coordinator": control.decode_to_coordinator,
    "to worker": control.decode_to_worker,
    "to supervisor": control.decode_to_supervisor,
    "to writer": results.decode_to_writer,
    "from writer": results.decode_from_writer,
}


@pytest.mark.parametrize("name", DECODERS)
def test_random_bytes_are_undecodable(name):
    chance = random.Random(name)
    bodies = [chance.randbytes(chance.randrange(1, 24)) for _ in range(20_000)]
    refused = 0
    for body in [bytes.fromhex("91b1b558118ad792"), *bodies]:
        try:
            DECODERS[name](body)
        except UNDECODABLE:
            refused += 1
    assert refused == len(bodies) + 1
