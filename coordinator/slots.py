"""How MAX_CONCURRENT_HTTP is split into slices.

Pure arithmetic and the book of slices in force.  The rule that holds at every moment: the slices in force sum to at
most the total.  A smaller slice is in force only when its worker says that its requests in flight are below it, so
slots are given to others strictly after they were given up; a larger one is in force as soon as it is sent.

It does not know what workers do with their slots, nor when to ask them.
"""

import msgspec

FLOOR_SHARE = 0.25  # of an equal share that every member keeps, however idle


def split_slots(total: int, demands: dict[str, float]) -> dict[str, int]:
    """Slices that sum to ``total``, at least 1 each, by demand above a floor.  Needs total >= len(demands)."""
    if not demands:
        return {}
    count = len(demands)
    assert total >= count, f"{total} slots for {count} workers"
    floor = max(1, int(total / count * FLOOR_SHARE))
    spare = total - floor * count
    whole = sum(demands.values())
    shares = {name: spare * (demand / whole if whole > 0 else 1 / count) for name, demand in demands.items()}
    slices = {name: floor + int(share) for name, share in shares.items()}
    left = total - sum(slices.values())
    by_remainder = sorted(shares, key=lambda name: (int(shares[name]) - shares[name], name))
    for name in by_remainder[:left]:
        slices[name] += 1
    return slices


class Slice(msgspec.Struct):
    wanted: int = 0
    sent: int | None = None  # the last Limits this incarnation was sent
    in_force: int = 0  # the largest that may still be in force


class SliceBook:
    """Slices of all workers that may have requests in flight, those that leave included."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._ceiling = total  # above the total while a lower one has not been reached
        self._slices: dict[str, Slice] = {}

    @property
    def total(self) -> int:
        return self._total

    @total.setter
    def total(self, total: int) -> None:
        self._total = total
        self._ceiling = max(total, self.in_force())

    def joined(self, name: str, in_force: int) -> None:
        """A worker introduced itself, with the slice it works by."""
        self._slices[name] = Slice(wanted=in_force, sent=None, in_force=in_force)
        self._ceiling = max(self._ceiling, self.in_force())

    def gone(self, name: str) -> None:
        self._slices.pop(name, None)

    def want(self, wanted: dict[str, int]) -> None:
        """New targets; who is not named is to have none."""
        for name, entry in self._slices.items():
            entry.wanted = wanted.get(name, 0)

    def reached(self, name: str) -> None:
        """In flight is at or below the slice sent last."""
        entry = self._slices.get(name)
        if entry is not None and entry.sent is not None:
            entry.in_force = entry.sent

    def in_force(self) -> int:
        return sum(entry.in_force for entry in self._slices.values())

    def slice_of(self, name: str) -> int:
        entry = self._slices.get(name)
        return 0 if entry is None else (entry.in_force if entry.sent is None else entry.sent)

    def wanted_of(self, name: str) -> int:
        entry = self._slices.get(name)
        return 0 if entry is None else entry.wanted

    def next_changes(self) -> dict[str, int]:
        """The slices to send now: every shrink at once, growth as far as free slots go.  Marks them as sent."""
        changes: dict[str, int] = {}
        for name, entry in self._slices.items():
            if entry.wanted < entry.in_force and entry.wanted != entry.sent:
                entry.sent = changes[name] = entry.wanted
        free = max(0, self.total - self.in_force())
        for name, entry in self._slices.items():
            if entry.wanted >= entry.in_force and entry.wanted != entry.sent:
                grown = min(entry.wanted, entry.in_force + free)
                if grown != entry.sent:
                    free -= grown - entry.in_force
                    entry.in_force = entry.sent = changes[name] = grown
        return changes

    def resend(self, name: str) -> None:
        """Forget what was sent: the next ``next_changes`` sends this worker its slice again (a new session)."""
        entry = self._slices.get(name)
        if entry is not None:
            entry.sent = None

    def check(self) -> None:
        """Above the total only after it was lowered or when adopted so, and then it only sinks."""
        in_force = self.in_force()
        assert in_force <= self._ceiling, (in_force, self._ceiling, self._slices)
        self._ceiling = max(self._total, in_force)
