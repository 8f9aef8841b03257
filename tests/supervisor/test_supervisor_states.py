"""The table of process states: all of it is walked, and what isn't in it is refused."""

import itertools

import pytest

from cluster.supervisor.states import TRANSITIONS, ProcessChange, ProcessState, next_state

S, C = ProcessState, ProcessChange

# What must hold whatever the table says: which changes need a process, and which leave one.
NEEDS_PROCESS = {C.PROVED, C.ENDED_WANTED, C.ENDED_DONE, C.ENDED_FATAL}
NEEDS_NONE = {C.STARTED}


@pytest.mark.parametrize(("state", "change"), list(itertools.product(S, C)))
def test_every_pair_is_in_the_table_or_refused(state, change):
    if (state, change) in TRANSITIONS:
        assert next_state(state, change) is TRANSITIONS[state, change]
    else:
        with pytest.raises(AssertionError, match=f"a process that is {state.value} can't be {change.value}"):
            next_state(state, change)


@pytest.mark.parametrize(("pair", "following"), list(TRANSITIONS.items()), ids=str)
def test_the_table_agrees_with_whether_a_process_exists(pair, following):
    state, change = pair
    if change in NEEDS_PROCESS:
        assert state.is_alive
        assert following.is_alive == (change is C.PROVED)
    elif change in NEEDS_NONE:
        assert not state.is_alive
        assert following.is_alive
    else:
        assert change is C.TOLD_TO_STOP
        assert following.is_alive == state.is_alive


def test_every_state_can_be_told_to_stop_and_is_reached():
    assert {state for state, change in TRANSITIONS if change is C.TOLD_TO_STOP} == set(S)
    assert set(TRANSITIONS.values()) == set(S)


def test_nothing_leaves_fatal():
    assert {following for (state, _), following in TRANSITIONS.items() if state is S.FATAL} == {S.FATAL}
