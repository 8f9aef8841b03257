"""Placement as properties: loads are bounded, and only what must move moves."""

import random
import subprocess
import sys
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.ticks import PARTITIONS
from coordinator.ring import EPSILON, assign, effective_weights, overloaded, preferences

WORKERS_MAX = 10
MOVEMENT = 1.1


def names(count, first=1):
    return [f"worker-{number}" for number in range(first, first + count)]


def weights_of(kind, seed):
    """Weights of partitions as clusters have them; none above what a bounded load can take."""
    chance = random.Random(seed)
    match kind:
        case "even":
            weights = [1.0] * PARTITIONS
        case "few projects":
            weights = [0.0] * PARTITIONS
            for _ in range(1_000):
                weights[chance.randrange(PARTITIONS)] += 1.0
        case "mixed intervals":
            weights = [
                sum(chance.choice([1.0, 0.1, 1 / 300]) for _ in range(chance.randrange(6))) for _ in range(PARTITIONS)
            ]
        case "skewed":
            weights = [chance.paretovariate(1.5) for _ in range(PARTITIONS)]
        case _:
            weights = [0.0] * PARTITIONS
    largest = 0.04 * sum(weights) / WORKERS_MAX  # of the mean load: placing one more stays within the bound
    return [min(weight, largest) for weight in weights] if largest else weights


kinds = st.sampled_from(["even", "few projects", "mixed intervals", "skewed", "none"])
seeds = st.integers(min_value=0, max_value=10_000)
counts = st.integers(min_value=1, max_value=WORKERS_MAX)


def loads_of(weights, owners, members):
    effective = effective_weights(weights)
    loads = dict.fromkeys(members, 0.0)
    for partition, owner in enumerate(owners):
        loads[owner] += effective[partition]
    return loads, sum(effective) / len(members)


def assert_bounded(weights, owners, members):
    assert set(owners) <= set(members)
    loads, mean = loads_of(weights, owners, members)
    assert max(loads.values()) <= (1 + EPSILON) * mean * (1 + 1e-9), {name: load / mean for name, load in loads.items()}
    assert not overloaded(weights, owners, members)


def moved(before, after):
    return [partition for partition, owner in enumerate(before) if after[partition] != owner]


@settings(max_examples=12)
@given(kinds, seeds, counts)
def test_a_first_assignment_is_bounded_and_repeatable(kind, seed, count):
    weights, members = weights_of(kind, seed), names(count)
    owners = assign(weights, members, [None] * PARTITIONS)
    assert_bounded(weights, owners, members)
    assert owners == assign(weights, list(reversed(members)), [None] * PARTITIONS)
    assert owners == assign(weights, members, owners), "a settled ring has nothing to move"


@settings(max_examples=20)
@given(kinds, seeds, st.integers(min_value=1, max_value=WORKERS_MAX - 1))
def test_a_newcomer_moves_its_fair_share_and_no_more(kind, seed, count):
    weights, members = weights_of(kind, seed), names(count)
    newcomer = f"worker-{count + 1}"
    before = assign(weights, members, [None] * PARTITIONS)
    after = assign(weights, [*members, newcomer], before)
    assert_bounded(weights, after, [*members, newcomer])
    moves = moved(before, after)
    assert len(moves) <= MOVEMENT * PARTITIONS / (count + 1)
    effective = effective_weights(weights)
    assert sum(effective[p] for p in moves) <= MOVEMENT * sum(effective) / (count + 1)
    _, mean = loads_of(weights, after, [*members, newcomer])
    heavy = {name for name, load in loads_of(weights, before, members)[0].items() if load > (1 + EPSILON) * mean}
    assert all(after[p] == newcomer or before[p] in heavy for p in moves)
    assert any(after[p] == newcomer for p in moves)


@settings(max_examples=20)
@given(kinds, seeds, st.integers(min_value=2, max_value=WORKERS_MAX), st.data())
def test_a_leaver_moves_what_it_had(kind, seed, count, data):
    weights, members = weights_of(kind, seed), names(count)
    leaver = data.draw(st.sampled_from(members))
    rest = [name for name in members if name != leaver]
    before = assign(weights, members, [None] * PARTITIONS)
    after = assign(weights, rest, before)
    assert_bounded(weights, after, rest)
    moves = moved(before, after)
    shed = [p for p in moves if before[p] != leaver]
    assert {p for p, owner in enumerate(before) if owner == leaver} <= set(moves)
    # Who stays had at most the placement bound of a smaller mean, so nobody is above the new one.
    assert not shed, f"{len(shed)} moved that need not"


@settings(max_examples=10)
@given(kinds, seeds, st.lists(st.sampled_from(["join", "leave", "leave", "drift"]), min_size=3, max_size=8))
def test_bounds_hold_through_a_life_of_joins_and_leaves(kind, seed, steps):
    chance = random.Random(seed)
    weights, members = weights_of(kind, seed), names(3)
    owners = assign(weights, members, [None] * PARTITIONS)
    number = 3
    for step in steps:
        before = list(members)
        if step == "join" and len(members) < WORKERS_MAX:
            number += 1
            members.append(f"worker-{number}")
        elif step == "leave" and len(members) > 1:
            members.remove(chance.choice(members))
        else:
            weights = [weight * chance.uniform(0.7, 1.3) for weight in weights]
        after = assign(weights, members, owners)
        assert_bounded(weights, after, members)
        gone = set(before) - set(members)
        needless = [p for p in moved(owners, after) if owners[p] not in gone and not set(members) - set(before)]
        if step != "drift" and not set(members) - set(before):
            loads, mean = loads_of(weights, [o if o in members else members[0] for o in owners], members)
            assert not needless or max(loads.values()) > (1 + EPSILON) * mean
        owners = after


@settings(max_examples=15)
@given(seeds, st.integers(min_value=2, max_value=WORKERS_MAX), st.sampled_from([0.05, 0.2, 0.35, 0.6]))
def test_heavy_partitions_are_spread_as_far_as_they_allow(seed, count, share):
    """A few projects may be most of the load: nobody is above the bound while another has room for one of them."""
    chance = random.Random(seed)
    members = names(count)
    weights = [0.0] * PARTITIONS
    for partition in chance.sample(range(PARTITIONS), max(2, int(count / share))):
        weights[partition] = 1.0
    owners = assign(weights, members, [None] * PARTITIONS)
    for _ in range(4):
        loads, mean = loads_of(weights, owners, members)
        effective = effective_weights(weights)
        lightest = min(loads.values())
        for partition, owner in enumerate(owners):
            if loads[owner] > (1 + EPSILON) * mean and weights[partition]:
                assert lightest + effective[partition] > (1 + EPSILON) * mean, (
                    f"{owner} has {loads[owner] / mean:.2f} of the mean, the lightest {lightest / mean:.2f}, "
                    f"and a partition of {effective[partition] / mean:.2f} stays where it is"
                )
        for partition in chance.sample([p for p, weight in enumerate(weights) if weight], 1):
            weights[partition] = 0.0
        if not any(weights):
            break
        owners = assign(weights, members, owners)


def test_one_partition_with_all_the_load_sits_alone():
    weights = [0.0] * PARTITIONS
    weights[77] = 1_000.0
    owners = assign(weights, names(4), [None] * PARTITIONS)
    owner = owners[77]
    others = [p for p, name in enumerate(owners) if name == owner and p != 77]
    assert len(others) < PARTITIONS / 4 / 4


def test_without_members_nobody_owns_anything():
    assert assign([1.0] * PARTITIONS, [], ["worker-1"] * PARTITIONS) == [None] * PARTITIONS
    assert not overloaded([1.0] * PARTITIONS, [None] * PARTITIONS, [])


def test_what_nobody_owns_goes_out_and_nothing_else_moves():
    """As after a restart in which every worker kept what it held, but one."""
    weights, members = [1.0] * PARTITIONS, names(4)
    before = assign(weights, members, [None] * PARTITIONS)
    holes = list(before)
    for partition in range(0, PARTITIONS, 50):
        holes[partition] = None
    after = assign(weights, members, holes)
    assert {p for p in range(PARTITIONS) if after[p] != before[p]} <= set(range(0, PARTITIONS, 50))


def test_preferences_name_each_member_once():
    members = tuple(names(7))
    for partition in (0, 1, 4_095):
        assert sorted(preferences(partition, members)) == sorted(members)


def test_preferences_of_the_others_do_not_change_when_one_leaves():
    """Consistent: without the leaver, everybody's order is what it was."""
    members = tuple(names(6))
    rest = tuple(name for name in members if name != "worker-3")
    for partition in range(0, PARTITIONS, 37):
        assert list(preferences(partition, rest)) == [n for n in preferences(partition, members) if n != "worker-3"]


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_every_process_places_alike(hash_seed):
    """Nothing leans on the order of a set, which differs from process to process."""
    program = (
        "from coordinator.ring import assign;import zlib;"
        "w=[(p*7919%101)/10 for p in range(4096)];a=assign(w,['worker-%d'%n for n in (1,2,3)],[None]*4096);"
        "b=assign(w,['worker-%d'%n for n in (1,2,3,4,5)],a);print(zlib.crc32(repr((a,b)).encode()))"
    )
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": hash_seed}
    ).stdout
    weights = [(p * 7919 % 101) / 10 for p in range(PARTITIONS)]
    a = assign(weights, names(3), [None] * PARTITIONS)
    b = assign(weights, names(5), a)
    assert int(out) == zlib.crc32(repr((a, b)).encode())
