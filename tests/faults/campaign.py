"""Faults done one after the other to a cluster under load, and what each of them cost.

``run`` does a plan and returns a ``Campaign``: figures by fault, and the verdict over the three books after a clean
stop.  Nothing is judged on the way but that the cluster recovers at all (the next fault would prove nothing): a test
asks ``wrong()`` at the end, so that one run shows everything.
"""

import contextlib
import time

import msgspec

from tests.faults import books
from tests.faults.gaps import JITTER_S, is_allowed, widest_gap
from tests.faults.stage import INTERVAL_S

SETTLE_POLLS = 2  # of each project, after the cluster recovered, before a fault's window is closed
REPEAT_FROM_S = 1.5 * INTERVAL_S  # before a death: the newest tick of then is polled again by the next owner
STALLED_S = 1.0  # the machine stood still so long: then a process may have been taken for dead
STALLED_BEFORE_S = 6.0
ACCOUNTED_SLACK_S = 2 * INTERVAL_S  # at a stop, between the last tick accounted for and the order to stop


class FaultFigures(msgspec.Struct):
    """Of one fault.  Seconds; detection and catching up are measured on the machine's clock."""

    number: int
    kind: str
    what: str
    detected_s: float | None  # from the fault to the first line in the log; None: nothing was said
    caught_up_s: float  # from its end until the cluster was ready and all before that end was in the tables
    gap_s: float  # the widest of any project, beyond its interval
    gap_promised_s: float | None
    stall_s: float  # of the machine meanwhile
    since: float
    until: float
    wrong: list[str] = []


class Campaign(msgspec.Struct):
    seed: int
    projects: int
    workers: int
    seconds: float = 0.0
    faults: list[FaultFigures] = []
    verdict: books.Verdict | None = None
    wrong_at_the_end: list[str] = []

    def wrong(self):
        """Everything that must not be, in words."""
        found = [f"{each.number} {each.what}: {text}" for each in self.faults for text in each.wrong]
        if self.verdict is None:
            found.append("the run did not come to its end")
        elif disagreements := self.verdict.wrong():
            found += [f"books: {disagreements}", *self.verdict.examples]
        return found + self.wrong_at_the_end


class Runner:
    """``say`` takes a line of progress."""

    def __init__(self, stage, campaign, say):
        self.stage = stage
        self.campaign = campaign
        self.say = say
        self.deaths = []

    def do(self, number, fault):
        stage, watch = self.stage, self.stage.watch
        stage.let_pass(fault.waits_s)
        apart_s = stage.clock.apart_s()
        since = time.time()
        fault.inject(stage)
        stepped_s = max(apart_s, stage.clock.apart_s())
        stage.let_pass(fault.lasts_s)
        fault.heal(stage)
        healed_at = time.time()
        recovered_at = stage.wait_recovered(healed_at)
        stage.wait_polled(recovered_at, SETTLE_POLLS)
        until = time.time()
        apart_s = max(apart_s, stage.clock.apart_s())
        stepped_s = max(stepped_s, apart_s)
        self.deaths += [death_of(*death, until, stepped_s) for death in fault.deaths]

        gap = widest_gap(stage.log, stage.numbers, since, until)
        detected_at = watch.first(fault.sign, fault.struck_at) if fault.sign else None
        promised_s = None if fault.gap_s is None else fault.gap_s + apart_s
        figures = FaultFigures(
            number=number,
            kind=fault.kind,
            what=str(fault),
            detected_s=None if detected_at is None else round(max(0.0, detected_at - fault.struck_at), 2),
            caught_up_s=round(recovered_at - healed_at, 2),
            gap_s=gap.seconds,
            gap_promised_s=promised_s,
            stall_s=gap.stall_s,
            since=since,
            until=until,
        )
        if not is_allowed(gap, promised_s):
            figures.wrong.append(
                f"project {gap.number} was not polled for {gap.seconds} s beyond its interval; allowed are"
                f" {promised_s:.2f} + {JITTER_S} + {gap.stall_s}"
            )
        if fault.sign and detected_at is None:
            figures.wrong.append(f"no line of the log matches {fault.sign!r}")
        figures.wrong += fault.complaints(stage)
        figures.wrong += self._unplanned_ends(fault, since, until)
        figures.wrong += [
            f"{line.role} logged: {line.text}"
            for line in watch.since(since, until)
            if line.level == "critical" or line.text.startswith("Traceback")
        ]
        self.campaign.faults.append(figures)
        self.say(
            f"{number} {fault}: noticed {figures.detected_s}, caught up {figures.caught_up_s}, gap {figures.gap_s}"
            f" of {promised_s}, stall {figures.stall_s}" + "".join(f"\n    WRONG: {text}" for text in figures.wrong)
        )

    def _unplanned_ends(self, fault, since, until):
        """A process that ended though nobody touched it; none when the machine stood still before."""
        log = self.stage.log
        found = []
        for end in self.stage.watch.ends(since, until):
            if end.name in fault.may_end:
                continue
            if end.name in self.stage.worker_names:
                self.deaths.append(death_of(end.name, end.at, end.at - STALLED_BEFORE_S, until))
            if log.stall_s(end.at - STALLED_BEFORE_S, end.at) < STALLED_S:
                found.append(f"{end.name} {end.how}, and nobody had touched it")
        return found

    def finish(self, destroyed=books.NOTHING):
        """A clean stop; then the three books."""
        stage, campaign = self.stage, self.campaign
        stopped_at = time.time()
        exit_status = stage.cluster.stop()
        if exit_status:
            campaign.wrong_at_the_end.append(f"`cluster up` ended with {exit_status}: {stage.cluster.log_tail(3)}")
        _status, audit = stage.cluster.audit()
        horizon = books.instant_s(audit["horizon"]) - stage.clock.slowest_offset_s()
        if horizon < stopped_at - ACCOUNTED_SLACK_S:
            campaign.wrong_at_the_end.append(f"accounted for only until {stopped_at - horizon:.1f} s before the stop")
        stage.log.refresh()
        stage.wal.collect()
        with contextlib.closing(stage.postgres.sql()) as sql:
            tables = books.read_tables(sql, stage.ids.values(), audit)
        campaign.verdict = books.compare(stage.log, stage.ids, tables, stage.wal, self.deaths, destroyed)


def death_of(name, at, unwritten_since, until, apart_s=0.0):
    """``until``: when all was well again."""
    since = min(at, unwritten_since)
    return books.Death(name, at, since - REPEAT_FROM_S, until, since, apart_s)


def run(stage, faults, seed, say=print):
    campaign = Campaign(seed, stage.projects, len(stage.worker_names))
    runner = Runner(stage, campaign, say)
    began = time.monotonic()
    doing = ""
    try:
        for number, fault in enumerate(faults, 1):
            doing = f"{number} {fault}"
            runner.do(number, fault)
        doing = "the clean stop"
        runner.finish()
    except AssertionError as error:  # what was found until then is worth as much
        campaign.wrong_at_the_end.append(f"{doing}: {error}")
        say(campaign.wrong_at_the_end[-1])
    campaign.seconds = round(time.monotonic() - began, 1)
    return campaign
