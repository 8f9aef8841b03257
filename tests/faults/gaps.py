"""How long projects were not polled around a fault, by the target's own log.

The gap of a project is the longest time between two of its requests, less its interval: 0 is polling as if nothing had
happened.  What is allowed is the promise plus JITTER_S plus what the machine itself was seen to stall in the window; a
difference between the clocks of two workers counts as promised, because a tick comes later by as much when it moves.
"""

from typing import NamedTuple

from tests.faults.stage import INTERVAL_S

JITTER_S = 0.5  # of a request around its tick, on two shared cores that start Python meanwhile


class WidestGap(NamedTuple):
    seconds: float  # beyond the interval
    number: int  # the project
    stall_s: float  # of the machine, in the window


def widest_gap(log, numbers, since, until):
    """Over all projects in a window."""
    seconds, number = max((log.widest_gap(number, since, until), number) for number in numbers)
    return WidestGap(round(max(0.0, seconds - INTERVAL_S), 3), number, round(log.stall_s(since, until), 3))


def is_allowed(gap, promised_s):
    """``promised_s`` None: polling stands still, and the books say what was missed."""
    return promised_s is None or gap.seconds <= promised_s + JITTER_S + gap.stall_s
