"""Whether a project is up or down, as its results tell it one after the other.  Pure.

A project is up until ``down_after`` failures in a row say otherwise, and then down until ``up_after`` successes in a
row do.  A result with status ``unknown`` had a cause of our own and says nothing: it neither counts nor breaks a run.
"""

from collections.abc import Sequence
from typing import Literal

import msgspec

from cluster.messages.results import PollResult

State = Literal["up", "down"]


class ProjectStanding(msgspec.Struct, frozen=True):
    """``streak``: how many results, the newest ones, speak against the state, from ``streak_from_ms`` on."""

    state: State = "up"
    since_ms: int | None = None  # the first result of the run that made it so; None: from the beginning
    streak: int = 0
    streak_from_ms: int | None = None

    @property
    def is_settled_up(self) -> bool:
        """As every project without a failure is: a success says nothing new of it."""
        return self.state == "up" and not self.streak


class Thresholds(msgspec.Struct, frozen=True):
    down_after: int = 1
    up_after: int = 1


class StateChange(msgspec.Struct, frozen=True):
    """``result`` decided; it ends a run of ``polls`` that began at ``began_ms``."""

    state: State
    began_ms: int
    polls: int
    result: PollResult


UP = ProjectStanding()


def says_nothing_new(standing: ProjectStanding | None, result: PollResult) -> bool:
    """Whether the result leaves the standing as it is.  None: settled up."""
    if result.status == "success":
        return standing is None or standing.is_settled_up
    if result.status == "failure":
        return standing is not None and standing.state == "down" and not standing.streak
    return True


def follow(
    standing: ProjectStanding, results: Sequence[PollResult], thresholds: Thresholds
) -> tuple[ProjectStanding, list[StateChange]]:
    """Where a project stands after these results, which are in the order of their ticks."""
    changes: list[StateChange] = []
    for result in results:
        if result.status == "unknown":
            continue
        found: State = "up" if result.status == "success" else "down"
        if found == standing.state:
            if standing.streak:
                standing = ProjectStanding(standing.state, standing.since_ms)
            continue
        began_ms = result.scheduled_at_ms if standing.streak_from_ms is None else standing.streak_from_ms
        streak = standing.streak + 1
        needed = thresholds.up_after if found == "up" else thresholds.down_after
        if streak < needed:
            standing = ProjectStanding(standing.state, standing.since_ms, streak, began_ms)
        else:
            changes.append(StateChange(found, began_ms, streak, result))
            standing = ProjectStanding(found, began_ms)
    return standing, changes
