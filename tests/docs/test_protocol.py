"""PROTOCOL.md has every message with its tag and each of its fields."""

import inspect

import msgspec
import pytest

from cluster.messages import admin, control, results
from tests.docs.repository_facts import read

PROTOCOL = read("cluster/messages/PROTOCOL.md")


def structs(module):
    return [
        each
        for _, each in inspect.getmembers(module, inspect.isclass)
        if issubclass(each, msgspec.Struct) and each.__module__ == module.__name__
    ]


STRUCTS = [each for module in (control, results, admin) for each in structs(module)]
MESSAGES = [each for each in STRUCTS if each.__struct_config__.tag is not None]


def test_there_are_messages():
    assert len(MESSAGES) > 30


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.__name__)
def test_every_message_is_described_with_its_tag_and_fields(message):
    named = f"`{message.__name__}` (`{message.__struct_config__.tag}`)"
    lines = [line for line in PROTOCOL.splitlines() if named in line]
    assert len(lines) == 1, f"{named} is described {len(lines)} times"
    missing = [name for name in message.__struct_fields__ if f"`{name}`" not in lines[0]]
    assert not missing


@pytest.mark.parametrize("part", [each for each in STRUCTS if each not in MESSAGES], ids=lambda part: part.__name__)
def test_every_part_of_a_message_is_named(part):
    assert f"`{part.__name__}`" in PROTOCOL


@pytest.mark.parametrize(
    "record", [control.WorkerStats, control.PartitionGrant, control.Cut, results.PollResult, results.MissedRange]
)
def test_every_field_of_the_large_parts_is_named(record):
    missing = [name for name in record.__struct_fields__ if f"`{name}`" not in PROTOCOL]
    assert not missing


@pytest.mark.parametrize("exchange", ["joins", "planned move", "dies", "coordinator restarts", "writer restarts"])
def test_there_is_a_diagram_of_each_exchange(exchange):
    sections = PROTOCOL.split("\n### ")
    (section,) = [each for each in sections if exchange in each.splitlines()[0]]
    assert "```mermaid\nsequenceDiagram" in section
