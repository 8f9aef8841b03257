"""Durations as Go programs write them: ``1m30s``, ``500ms``, ``1.5h``; Prometheus has days, weeks and years.  Pure."""

import re

from cluster.errors import InvalidInputError
from cluster.interchange.model import shown

_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|\u00b5s|\u03bcs|ms|s|m|h|d|w|y)")
_MS = {
    "ns": 1e-6,
    "us": 1e-3,
    "\u00b5s": 1e-3,
    "\u03bcs": 1e-3,
    "ms": 1.0,
    "s": 1e3,
    "m": 60e3,
    "h": 3_600e3,
    "d": 86_400e3,
    "w": 604_800e3,
    "y": 31_536_000e3,
}
_DAYS = frozenset("dwy")


def duration_ms(written: object, *, days: bool = False) -> float:
    """``days``: as Prometheus has them.  A bare number is nanoseconds to Go; nobody means that, so only 0 is taken."""
    text = str(written).strip() if isinstance(written, str | int) and not isinstance(written, bool) else ""
    if text == "0":
        return 0.0
    total, at = 0.0, 0
    while match := _PART.match(text, at):
        if match[2] in _DAYS and not days:
            break
        total += float(match[1]) * _MS[match[2]]
        at = match.end()
    if not text or at != len(text) or total > _MS["y"] * 100:
        raise InvalidInputError(f"must be a duration such as 30s or 1m30s, not {shown(written)}")
    return total


def written_ms(ms: int) -> str:
    """The shortest form that Go and Prometheus read alike."""
    for unit, size in (("h", 3_600_000), ("m", 60_000), ("s", 1_000)):
        if ms and ms % size == 0:
            return f"{ms // size}{unit}"
    return f"{ms}ms"
