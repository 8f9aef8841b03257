"""Whether failures of polls are this machine's own: one ``OwnFaultJudge`` for its network, one for its resolver.

When the network of this machine goes away, every poll fails, each for a reason that reads like its target's.  A judge
is told of every failure that may be of that kind (a *suspect*), and of answers, and rules on each suspect.  The rules,
in the order in which they are applied:

1. A poll that began in an outage and ended, in vain, not long after it, is ours: what is lost is sent again at doubling
   distances, so a poll that lost x seconds may need as long again (and a second) once the network is back.
2. An answer from whatever host, received after the suspect could have had one of its own, is proof that the network
   (the resolver) worked: the failure is the target's.  "Could have had" is ``WINDOW_S`` after the poll began, or when
   it failed if that is sooner.
3. While an outage of ours is known, a suspect is ours.  An outage ends with the first answer, and is no longer taken
   for granted ``STANDS_S`` after it last showed itself.
4. Any other suspect is held back for ``WINDOW_S``.  When ``UNRELATED_MIN`` that have nothing to do with one another
   have failed in that time, and there was no answer in all of it, that is an outage, and all that are held are ours.
   It is not called before the time is over: those that work must have had the time to say so.  The window is less than
   a second, so that a poll is over within its time-out and a second (see ``BusyProject``).
5. With fewer hosts the machine itself may know: ``excuse`` is asked for each suspect that would be held (there is no
   route to it), ``found_out`` says so for all that are held (no name server answers).
6. Otherwise the failure is the target's.

Hosts are related when they share their registrable name (as far as that can be told from a name alone), or the network
their address lies in (/16; /32 for IPv6).  A host of this machine (loopback) proves nothing and is not to be told of.

So a failure is never called ours while other hosts answer, but for what rule 1 says; hosts on the local network count
as others, too: when only the way beyond it is gone and they still answer, failures remain the targets'.

Pure: time is an argument (monotonic seconds).  It keeps the suspects that are held, never more than there are polls in
flight, and ``UNRELATED_MIN`` witnesses.
"""

import functools
import ipaddress
import math
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, NamedTuple, TypeVar

import msgspec

UNRELATED_MIN = 5
WINDOW_S = 0.9
STANDS_S = 10.0
SHORT_LABEL = 3  # the co of co.uk: under a country's domain it belongs to no one

T = TypeVar("T")


class Suspect(NamedTuple, Generic[T]):
    """A failure that may be ours.  ``item`` is the caller's."""

    item: T
    relations: frozenset[str]
    began_at: float
    failed_at: float

    @property
    def answerable_at(self) -> float:
        """Answers that came later speak against it."""
        return min(self.began_at + WINDOW_S, self.failed_at)


class Ruling(NamedTuple, Generic[T]):
    """``why``: the failure is this machine's, in words; None: it is the target's."""

    item: T
    why: str | None


class Outage(msgspec.Struct):
    """``last_good_at``: of the last answer before it.  ``ended_at``: of the first one after it."""

    why: str
    since: float
    last_good_at: float
    stands_until: float
    ended_at: float = math.inf


class OwnFaultJudge(Generic[T]):
    """``many``: the words for ``UNRELATED_MIN`` hosts failing at once.

    Rulings are collected in ``rulings``, for the caller to take.
    """

    def __init__(self, many: str) -> None:
        self.rulings: list[Ruling[T]] = []
        self._many = many
        self._held: deque[Suspect[T]] = deque()  # in the order in which they failed
        self._witnesses: list[Suspect[T]] = []  # unrelated to one another, the newest last
        self._answered_at = -math.inf
        self._outage: Outage | None = None  # the last one

    def __repr__(self) -> str:
        return f"<OwnFaultJudge {len(self._held)} held, outage {self._outage}>"

    def __len__(self) -> int:
        """How many suspects are held."""
        return len(self._held)

    @property
    def is_curious(self) -> bool:
        """Whether the next answer would change anything."""
        return bool(self._held or self._witnesses) or (self._outage is not None and self._outage.ended_at == math.inf)

    def answered(self, at: float) -> None:
        if at <= self._answered_at:
            return
        self._answered_at = at
        outage = self._outage
        if outage is not None and outage.ended_at == math.inf:
            outage.ended_at = at
        self._witnesses = [witness for witness in self._witnesses if witness.answerable_at >= at]
        held, self._held = self._held, deque()
        for suspect in held:
            if suspect.answerable_at < at:
                self.rulings.append(Ruling(suspect.item, None))
            else:
                self._held.append(suspect)

    def failed(self, suspect: Suspect[T], now: float, excuse: Callable[[], str | None] = lambda: None) -> None:
        """``now``: not before anything said so far.  ``excuse``: why this one is ours, if this machine knows that."""
        lost = self._lost_in_an_outage(suspect)
        if lost is not None or suspect.answerable_at < self._answered_at:
            self.rulings.append(Ruling(suspect.item, lost))
            return
        self._bear_witness(suspect)
        outage = self._outage
        if outage is not None and now < outage.stands_until and outage.ended_at == math.inf:
            if len(self._witnesses) == UNRELATED_MIN:
                outage.stands_until = now + STANDS_S
            self.rulings.append(Ruling(suspect.item, outage.why))
        elif (why := excuse()) is not None:
            self.rulings.append(Ruling(suspect.item, why))
        else:
            self._held.append(suspect)

    def found_out(self, why: str, now: float) -> None:
        """It is an outage of ours: so the machine says, or the number of those that failed."""
        began = [suspect.began_at for suspect in (*self._held, *self._witnesses)]
        since = max(self._answered_at, min(began, default=now))
        self._outage = Outage(why, since, self._answered_at, now + STANDS_S)
        self.rulings += [Ruling(suspect.item, why) for suspect in self._held]
        self._held.clear()

    def next_timer(self) -> float | None:
        return self._held[0].failed_at + WINDOW_S if self._held else None

    def handle_timer(self, now: float) -> None:
        """``now``: whatever came until then has been told of."""
        while self._held and (due_at := self._held[0].failed_at + WINDOW_S) <= now:
            if _are_many(suspect for suspect in self._held if suspect.failed_at <= due_at):
                self.found_out(f"{UNRELATED_MIN} unrelated hosts {self._many}", now)
            else:
                self.rulings.append(Ruling(self._held.popleft().item, None))

    def let_go(self) -> None:
        """Hold nothing back any more: what is not known to be ours is not."""
        self.rulings += [Ruling(suspect.item, None) for suspect in self._held]
        self._held.clear()

    def _lost_in_an_outage(self, suspect: Suspect[T]) -> str | None:
        """Rule 1: why, if it is so."""
        outage = self._outage
        if outage is None or not suspect.began_at < outage.ended_at <= suspect.failed_at:
            return None
        lost_s = outage.ended_at - max(suspect.began_at, outage.since)
        in_vain = suspect.answerable_at < outage.last_good_at  # already before the outage
        return None if in_vain or suspect.failed_at - outage.ended_at > lost_s + 1 else outage.why

    def _bear_witness(self, suspect: Suspect[T]) -> None:
        """Note it, and of the others those that are unrelated to it and have failed within the window."""
        since = suspect.failed_at - WINDOW_S
        others = [
            witness
            for witness in self._witnesses
            if witness.failed_at > since and not witness.relations & suspect.relations
        ]
        self._witnesses = [*others, suspect][-UNRELATED_MIN:]


def _are_many(suspects: Iterable[Suspect[T]]) -> bool:
    """Whether enough of them have nothing to do with one another."""
    related: set[str] = set()
    count = 0
    for suspect in suspects:
        if related.isdisjoint(suspect.relations):
            count += 1
            if count == UNRELATED_MIN:
                return True
        related |= suspect.relations
    return False


def relations_of(host: str, address: str | None) -> frozenset[str]:
    """What a host may share with others, so that they would fail together.

    Without a list of public suffixes two companies below one of them pass for related; that errs on the safe side.
    """
    found = set()
    own = _as_address(host)
    if own is None:
        labels = host.rstrip(".").lower().split(".")
        kept = 3 if len(labels) > 2 and len(labels[-1]) == 2 and len(labels[-2]) <= SHORT_LABEL else 2
        found.add(
            ".".join(labels[-kept:]) if len(labels) > 1 else ""
        )  # those without a dot share this machine's domain
    for each in (own, _as_address(address) if address else None):
        if each is not None:
            found.add(str(ipaddress.ip_network((each.packed, 16 if each.version == 4 else 32), strict=False)))
    return frozenset(found)


@functools.lru_cache(maxsize=4_096)
def is_own_host(host: str, address: str | None) -> bool:
    """Whether it is on this machine: what becomes of it says nothing about networks and name servers."""
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    found = _as_address(address) if address else _as_address(host)
    return found is not None and (found.is_loopback or found.is_unspecified)


def _as_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (found.ipv4_mapped or found) if isinstance(found, ipaddress.IPv6Address) else found
