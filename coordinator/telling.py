"""What each worker is told: sessions, grants, changes of projects, limits; and when they have acknowledged it.

Pure; part of the coordinator's core.  It turns what ``Member`` has pending into numbered messages as the window of its
link allows, and knows what may have to be said again to another worker: first polls that nobody has acknowledged, and
spans that ended without being accounted for.  It decides nothing about who owns what.
"""

from collections import defaultdict
from collections.abc import Iterable

import msgspec

from cluster.messages.control import (
    BusyProject,
    EndedSpan,
    Limits,
    Remove,
    RemovedProject,
    Reset,
    ResumeReason,
    Revoke,
    Settle,
    SnapshotEnd,
    WaitingPoll,
)
from cluster.project import decode_spec
from cluster.ticks import partition_of
from coordinator.events import ConfirmChange, Effect, JournalProjects, ProjectsChanged, Send
from coordinator.link import Unacked, WorkerLink
from coordinator.member import BYTES_PER_MESSAGE, ENDED_PER_MESSAGE, Debt, Member, Note
from coordinator.ownership import Resume
from coordinator.state import ClusterState
from coordinator.uncovered import Hearing, Owed, Uncovered

PARTITIONS_PER_GRANT = 512
SESSIONS_PER_EPOCH = 1_000_000
GRANTED_BYTES_PER_STEP = BYTES_PER_MESSAGE  # a full message: building it takes time, and all may be told at once
GRANTED_BYTES_PER_ACK = 2 * BYTES_PER_MESSAGE  # more than one, so that the window fills up all the same
FED_MAX = 2  # workers that are granted at once: what all of them have to do at the same time, each does later
UNKNOWN_MS = 60_000  # a span that began so late may have been committed too late for a coordinator that died since


class WireGrant(msgspec.Struct, frozen=True):
    """PartitionGrant with projects as they are stored: encoded once, when they were loaded."""

    partition: int
    resume_after_ms: int | None
    reason: ResumeReason
    projects: list[msgspec.Raw]
    waiting: list[WaitingPoll] = []
    busy: list[BusyProject] = []
    immediate: list[int] = []
    unseen: list[int] = []
    ended: list[EndedSpan] = []
    last: bool = True


class WireUpsert(msgspec.Struct, tag="upsert", frozen=True):
    session: int
    seq: int
    epoch: int
    projects: list[msgspec.Raw]
    immediate: list[int] = []


class WireGrants(msgspec.Struct, tag="grant", frozen=True):
    session: int
    seq: int
    epoch: int
    partitions: list[WireGrant]


def is_fed(member: Member) -> bool:
    """It is busy with grants.  Of one that hangs nobody knows that, so it keeps no other waiting."""
    link = member.link
    return (
        link is not None
        and member.state != "hung"
        and any(isinstance(entry.message, WireGrants) for entry in link.unacked())
    )


class Teller:
    def __init__(self, state: ClusterState) -> None:
        self._state = state
        self.revoking: set[int] = set()  # partitions whose owner has been, or is to be, told to give them up
        self.uncovered = Uncovered()  # new spans and claims that no mark speaks for yet
        self._ended: defaultdict[int, list[EndedSpan]] = defaultdict(list)  # partition -> not yet accounted for
        self._tokens: dict[int, int] = {}  # token -> acknowledgements outstanding
        self._sessions = 0

    def acked(self, member: Member, entries: list[Unacked]) -> list[Effect]:
        """Settle what these messages were about."""
        effects: list[Effect] = []
        for entry in entries:
            note: Note = entry.note
            for index in note.granted:
                self._state.ownership.grant_acked(index, member.name, entry.seq)
            for index, owed, since_ms in note.seen:
                # One that has given the partition up meanwhile did not hear of it, and no mark of its own will say so.
                if self._state.ownership.partitions[index].owner == member.name and member.link is not None:
                    hearing = Hearing(member.incarnation, member.link.session, entry.seq)
                    self.uncovered.heard(hearing, index, owed, since_ms)
            effects += self.confirm(note.tokens)
        return effects

    def projects_changed(self, event: ProjectsChanged, now_ms: int) -> list[Effect]:
        stored = []
        dropped = []
        touched: set[str] = set()
        waits: set[str] = set()
        for span in event.ended:
            self._end_unknown(span, touched, initial=event.initial)
        for record in event.records:
            before = self._state.catalog.blob(record.id)
            change = self._state.catalog.put(record)
            if change is None:
                continue
            stored.append(record)
            index, is_new = change
            since_ms = decode_spec(record.blob).since_ms
            if before is not None:
                self._end_span(index, before, since_ms, touched)
            partition = self._state.ownership.partitions[index]
            immediate = is_new and not event.initial
            unknown = not event.initial or since_ms > now_ms - UNKNOWN_MS  # to a former coordinator, too
            if unknown and (is_new or self._is_new_span(before, record.blob)):
                self.uncovered.begin(index, record.id, since_ms, wants_poll=immediate)
            owner = self._state.told_owner(partition)
            if owner is not None:
                owner.upserts[record.id] = immediate or owner.upserts.get(record.id, False)
                touched.add(owner.name)
                waits.add(owner.name)
        for removed in event.removed:
            blob = self._state.catalog.blob(removed.project_id)
            dropped_from = self._state.catalog.remove(removed)
            if dropped_from is None:
                self._ask_again(removed, touched, waits)
                continue
            dropped.append(removed.project_id)
            partition = self._state.ownership.partitions[dropped_from]
            owner = self._state.told_owner(partition)
            if owner is not None:
                owner.upserts.pop(removed.project_id, None)
                owner.removes[removed.project_id] = removed.until_ms
                touched.add(owner.name)
                waits.add(owner.name)
            elif (holder := self._state.members.get(partition.owner or "")) is not None:
                waits.add(holder.name)  # the snapshot it is about to get is without the project
                if holder.link is not None and not holder.snapshot:  # ... or that snapshot gives the partition up
                    holder.removes[removed.project_id] = removed.until_ms
                    touched.add(holder.name)
            assert blob is not None
            self._end_span(dropped_from, blob, removed.until_ms, touched)
            self.uncovered.drop(dropped_from, removed.project_id)
        effects: list[Effect] = []
        if stored or dropped:
            effects.append(JournalProjects(stored, dropped))
        if event.token is not None:
            effects += self._await(
                event.token, [self._state.members[name] for name in waits if name in self._state.members]
            )
        for name in sorted(touched):
            effects += self.pump(self._state.members[name], now_ms)
        return effects

    def _ask_again(self, removed: RemovedProject, touched: set[str], waits: set[str]) -> None:
        """It was dropped before; its owner may not have heard so yet.  Saying it twice is harmless."""
        partition = self._state.ownership.partitions[partition_of(removed.project_id)]
        owner = self._state.told_owner(partition)
        if owner is not None:
            owner.removes[removed.project_id] = removed.until_ms
            touched.add(owner.name)
            waits.add(owner.name)
        elif partition.owner is not None:
            waits.add(partition.owner)

    def _is_new_span(self, before: bytes | None, after: bytes) -> bool:
        if before is None:
            return True
        old, new = decode_spec(before), decode_spec(after)
        return (old.since_ms, old.interval_ms) != (new.since_ms, new.interval_ms)

    def _end_unknown(self, span: EndedSpan, touched: set[str], *, initial: bool) -> None:
        """A span that is over.  If the core knew it, its end comes with this event, or came before.

        At the start, marks say what was accounted for; later they don't speak for projects nobody was told of.
        """
        index = partition_of(span.project_id)
        blob = self._state.catalog.blob(span.project_id)
        told = blob is not None and decode_spec(blob).since_ms == span.since_ms
        key = (span.project_id, span.since_ms)
        seen = any((known.project_id, known.since_ms) == key for known in self._ended[index])
        if seen or (told and not initial):
            return
        if initial:
            self._ended[index].append(span)
        else:
            self._claim(index, [msgspec.structs.replace(span, unheard=True)], touched)

    def _claim(self, index: int, spans: list[EndedSpan], touched: set[str]) -> None:
        """Have the owner account for these, and the next one, should it die before."""
        self._ended[index] += spans
        for span in spans:
            self.uncovered.begin(index, span, span.since_ms)
        owner = self._state.told_owner(self._state.ownership.partitions[index])
        if owner is not None:
            owner.ended += spans
            touched.add(owner.name)

    def settle_debts(self, debts: dict[int, Debt], busy: list[BusyProject], now_ms: int) -> list[Effect]:
        """A worker died before what it did in partitions it had given up was committed, or had ended."""
        touched: set[str] = set()
        for index, debt in debts.items():
            after_ms = -1 if debt.after_ms is None else debt.after_ms
            specs = [decode_spec(blob) for blob in self._state.catalog.blobs(index)]
            spans = [EndedSpan(spec.id, spec.since_ms, debt.cut_ms + 1, spec.interval_ms) for spec in specs]
            spans += [span for span in self._ended.get(index, []) if not span.unheard]  # claims are told as they are
            claims = [
                EndedSpan(
                    span.project_id,
                    max(span.since_ms, after_ms + 1),
                    min(span.until_ms, debt.cut_ms + 1),
                    span.interval_ms,
                    unheard=True,
                )
                for span in spans
            ]
            self._claim(index, [claim for claim in claims if claim.since_ms < claim.until_ms], touched)
        for entry in busy:
            settled = self._state.ownership.settled(entry)
            owner = None if settled is None else self._state.told_owner(self._state.ownership.partitions[settled])
            if owner is not None:
                owner.settles[entry] = None
                touched.add(owner.name)
        return [effect for name in sorted(touched) for effect in self.pump(self._state.members[name], now_ms)]

    def given_up(self, index: int, mark_ms: int | None) -> int | None:
        """The owner gave a partition up: the mark that speaks for all of its projects."""
        begun_ms = self.uncovered.given_up(index)
        return mark_ms if begun_ms is None or mark_ms is None else min(mark_ms, begun_ms - 1)

    def lost(self, indices: list[int], incarnation: str) -> None:
        """The owner of these partitions is dead: what no mark speaks for is as good as unseen."""
        for index in indices:
            self.uncovered.lost(index)
        self.uncovered.gone(incarnation)

    def _end_span(self, index: int, blob: bytes, until_ms: int, touched: set[str]) -> None:
        """A project ended, or its interval changed: kept until it is accounted for, should its owner die before.

        A span that ends before any mark spoke for it is claimed: its owner may not have heard of it in time, and where
        the next one resumes says nothing of it.
        """
        old = decode_spec(blob)
        if until_ms <= old.since_ms:
            return
        span = EndedSpan(old.id, old.since_ms, until_ms, old.interval_ms)
        if self.uncovered.since_of(index, old.id) is None:
            self._ended[index].append(span)
        else:
            self._claim(index, [msgspec.structs.replace(span, unheard=True)], touched)

    def forget_accounted(self, horizon_ms: int | None) -> None:
        """Spans that ended before the horizon are accounted for; nobody asks about them again."""
        for index in list(self._ended):
            self._ended[index] = [span for span in self._ended[index] if span.until_ms > (horizon_ms or 0)]
            if not self._ended[index]:
                del self._ended[index]

    def _await(self, token: int, members: list[Member]) -> list[Effect]:
        waiting = 0
        for member in members:
            if member.removes:
                member.remove_tokens.append(token)
                waiting += 1
            elif member.link is None or member.snapshot:
                member.snapshot_tokens.append(token)
                waiting += 1
        if waiting == 0:
            return [ConfirmChange(token)]
        self._tokens[token] = waiting
        return []

    def confirm(self, tokens: list[int]) -> list[Effect]:
        effects: list[Effect] = []
        for token in tokens:
            self._tokens[token] -= 1
            if self._tokens[token] == 0:
                del self._tokens[token]
                effects.append(ConfirmChange(token))
        return effects

    def open_session(self, member: Member, now_ms: int) -> list[Effect]:
        assert member.peer is not None
        self._sessions += 1
        session = self._state.epoch * SESSIONS_PER_EPOCH + self._sessions
        self._state.ownership.session_opened(member.name)
        grants = []
        for index in self._state.ownership.owned_by(member.name):
            partition = self._state.ownership.partitions[index]
            if partition.wanted in (None, member.name) or partition.wanted not in self._state.members:
                grants.append(index)
                partition.revoked_at_ms = None
                partition.revoke_sent = False
            else:
                partition.revoked_at_ms = now_ms
                self.revoking.add(index)
        unowned = [
            i for i, p in enumerate(self._state.ownership.partitions) if p.owner is None and p.wanted == member.name
        ]
        member.open(WorkerLink(member.peer, session), grants + unowned)
        self._state.slices.resend(member.name)
        link = member.link
        assert link is not None
        reset = link.push(Reset(session, link.number(), self._state.epoch), Note(), now_ms)
        return [Send(link.peer, reset)]

    def pump_all(self, now_ms: int) -> list[Effect]:
        return [effect for member in list(self._state.members.values()) for effect in self.pump(member, now_ms)]

    def pump(self, member: Member, now_ms: int, *, granted_bytes: int = GRANTED_BYTES_PER_STEP) -> list[Effect]:
        """Say as much of what is to be said as the window takes.

        Of grants no further message once they carried ``granted_bytes``: more follow when these are acknowledged.
        ``FED_MAX`` workers have their turn at once; the others' comes when these have acknowledged all.
        """
        effects: list[Effect] = []
        link = member.link
        while link is not None and link.has_room:
            seq = link.number()
            note = Note()
            message: msgspec.Struct
            if member.limits is not None:
                message = Limits(link.session, seq, member.limits, self._state.per_host())
                member.limits, member.limits_seq = None, seq
            elif revoked := member.revokes - member.grants.keys():
                message = Revoke(link.session, seq, self._state.epoch, sorted(revoked))
                for index in revoked:
                    self._state.ownership.partitions[index].revoke_sent = True
                member.revokes -= revoked
            elif member.removes or member.ended:
                removed, tokens = member.take_removes()
                ended, member.ended = member.ended[:ENDED_PER_MESSAGE], member.ended[ENDED_PER_MESSAGE:]
                message = Remove(link.session, seq, self._state.epoch, removed, ended)
                note = Note(tokens=tokens, seen=self._uncovered_of(ended))
            elif member.settles:
                message = Settle(link.session, seq, list(member.settles))
                member.settles.clear()
            elif member.upserts:
                blobs, taken = member.take_upserts(self._state.catalog.blob)
                immediate = [project_id for project_id, wanted in taken.items() if wanted]
                message = WireUpsert(link.session, seq, self._state.epoch, blobs, immediate)
                note = Note(seen=self._uncovered_of(taken))
            elif member.grants:
                if granted_bytes <= 0 or not self._may_grant(member):
                    break
                granting, size = self._grant(member, link, now_ms)
                effects += granting
                granted_bytes -= size
                continue
            elif member.snapshot:
                member.snapshot = False
                note = member.snapshot_note()
                message = SnapshotEnd(link.session, seq)
            else:
                break
            effects.append(Send(link.peer, link.push(message, note, now_ms)))
        return effects

    def _may_grant(self, member: Member) -> bool:
        fed = sum(is_fed(other) for other in self._state.members.values() if other is not member)
        return fed < FED_MAX

    def _uncovered_of(self, told: Iterable[Owed]) -> list[tuple[int, Owed, int]]:
        """Those that no mark speaks for, as a note wants them: its acknowledgement is their hearing."""
        seen = []
        for owed in told:
            index = partition_of(owed if isinstance(owed, int) else owed.project_id)
            since_ms = self.uncovered.since_of(index, owed)
            if since_ms is not None:
                seen.append((index, owed, since_ms))
        return seen

    def _grant(self, member: Member, link: WorkerLink, now_ms: int) -> tuple[list[Effect], int]:
        """One message of grants; a partition larger than a message goes out in parts, one after the other.

        Returns the bytes of the projects, too.
        """
        effects: list[Effect] = []
        parts: list[WireGrant] = []
        seen: list[tuple[int, Owed, int]] = []
        granted: list[int] = []
        size = sent_bytes = 0

        def flush() -> None:
            nonlocal size, sent_bytes, parts, seen, granted
            sent_bytes += size
            message = WireGrants(link.session, link.number(), self._state.epoch, parts)
            note = Note(seen=seen, granted=granted)
            effects.append(Send(link.peer, link.push(message, note, now_ms)))
            parts, seen, granted, size = [], [], [], 0

        for index in list(member.grants):
            del member.grants[index]
            partition = self._state.ownership.partitions[index]
            held = partition.owner == member.name  # what it holds it is told of before it gives it up: its cut says all
            if not held and (partition.owner is not None or partition.wanted not in (None, member.name)):
                continue
            resume = partition.resume or Resume(partition.mark_ms, "handover")
            ended = self._ended.get(index, [])
            unseen = self.uncovered.unseen(index)
            chunk: list[msgspec.Raw] = []
            for blob in self._state.catalog.blobs(index):
                chunk.append(msgspec.Raw(blob))
                size += len(blob)
                if size >= BYTES_PER_MESSAGE:
                    parts.append(WireGrant(index, resume.after_ms, resume.reason, chunk, last=False))
                    chunk = []
                    flush()
            parts.append(
                WireGrant(
                    index,
                    resume.after_ms,
                    resume.reason,
                    chunk,
                    resume.waiting,
                    self._state.ownership.still_busy(index, now_ms),
                    [project_id for project_id, wanted in unseen.items() if wanted],
                    [project_id for project_id, wanted in unseen.items() if not wanted],
                    ended,
                )
            )
            seen += self._uncovered_of([*unseen, *ended])
            granted.append(index)
            self._state.ownership.granted(index, member.name, self._state.epoch, link.number())
            if index in member.revokes:
                partition.revoked_at_ms = now_ms
            else:
                self.revoking.discard(index)
            if effects or len(parts) >= PARTITIONS_PER_GRANT or size >= BYTES_PER_MESSAGE:
                break
        if parts:
            flush()
        return effects, sent_bytes
