"""The driver with a core that only writes down what it is told, in a loop whose timers are real."""

import asyncio

import pytest

from cluster.clock import Clock
from cluster.driver import Driver

DEADLINE_S = 5.0


class NotingCore:
    """Answers every event with the effects scripted for it."""

    def __init__(self):
        self.events = []
        self.timer_calls = []
        self.due = None
        self.answers = {}

    def handle(self, event, now_ms):
        self.events.append(event)
        answer = self.answers.get(event, [])
        if isinstance(answer, Exception):
            raise answer
        return answer

    def next_timer(self):
        return self.due

    def handle_timer(self, now_ms):
        self.timer_calls.append(now_ms)
        due, self.due = self.due, None
        assert due is not None
        return ["timer effect"]


class Stage:
    def __init__(self):
        self.core = NotingCore()
        self.clock = Clock(jump=False)
        self.performed = []
        self.changed = asyncio.Event()
        self.gathered = []
        self.driver = Driver(self.core, self.clock, self.perform, self.gather)

    def gather(self):
        return self.gathered.pop(0) if self.gathered else None

    def perform(self, effect):
        self.performed.append(effect)
        self.changed.set()
        if callable(effect):
            effect()

    async def until(self, condition):
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


async def test_effects_are_performed_in_order_before_submit_returns():
    stage = Stage()
    stage.core.answers = {"event": ["first", "second"]}
    stage.driver.submit("event")
    assert stage.performed == ["first", "second"]


async def test_an_event_out_of_an_effect_waits_until_all_effects_are_performed():
    stage = Stage()
    stage.core.answers = {"outer": [lambda: stage.driver.submit("inner"), "outer effect"], "inner": ["inner effect"]}
    stage.driver.submit("outer")
    assert stage.core.events == ["outer", "inner"]
    assert stage.performed[1:] == ["outer effect", "inner effect"]


async def test_the_timer_rings_once_it_is_due_and_not_before():
    stage = Stage()
    due = stage.core.due = stage.clock.now_ms() + 30
    stage.driver.wake()
    await stage.until(lambda: stage.performed == ["timer effect"])
    assert len(stage.core.timer_calls) == 1
    assert stage.core.timer_calls[0] >= due - 1


async def test_a_timer_that_is_overdue_rings_at_once():
    stage = Stage()
    stage.core.due = stage.clock.now_ms() - 1_000
    stage.driver.wake()
    await stage.until(lambda: stage.core.timer_calls)


async def test_an_event_may_bring_the_timer_forward():
    stage = Stage()
    stage.core.due = stage.clock.now_ms() + 3_600_000
    stage.driver.wake()
    stage.core.due = stage.clock.now_ms() + 5
    stage.driver.submit("sooner")
    await stage.until(lambda: stage.core.timer_calls)


async def test_a_timer_that_is_not_wanted_any_more_does_not_ring():
    stage = Stage()
    stage.core.due = stage.clock.now_ms() + 20
    stage.driver.wake()
    stage.core.due = None
    stage.driver.submit("never mind")
    rung_after = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(0.06, rung_after.set_result, None)
    await rung_after
    assert stage.core.timer_calls == []


async def test_a_timer_may_arm_the_next_one():
    stage = Stage()

    def again():
        if len(stage.core.timer_calls) < 3:
            stage.core.due = stage.clock.now_ms() + 1

    original = stage.core.handle_timer
    stage.core.handle_timer = lambda now_ms: [*original(now_ms), again]
    stage.core.due = stage.clock.now_ms()
    stage.driver.wake()
    await stage.until(lambda: len(stage.core.timer_calls) == 3)


async def test_what_has_gathered_is_heard_before_an_event_and_before_the_timer():
    stage = Stage()
    stage.gathered = ["gathered first", "gathered next"]
    stage.driver.submit("event")
    assert stage.core.events == ["gathered first", "event"]
    timer_calls_then = []
    stage.core.answers = {"gathered next": [lambda: timer_calls_then.append(list(stage.core.timer_calls))]}
    stage.core.due = stage.clock.now_ms() + 5
    stage.gathered.append(None)
    stage.driver.submit("arm it")
    assert stage.core.events == ["gathered first", "event", "gathered next", "arm it"]
    stage.gathered = ["gathered last"]
    stage.core.answers = {"gathered last": [lambda: timer_calls_then.append(list(stage.core.timer_calls))]}
    await stage.until(lambda: stage.core.timer_calls)
    assert stage.core.events[-1] == "gathered last"
    assert timer_calls_then == [[], []]


async def test_waking_it_hands_over_what_has_gathered():
    stage = Stage()
    stage.driver.wake()
    assert stage.core.events == []
    stage.gathered = ["gathered"]
    stage.driver.wake()
    assert stage.core.events == ["gathered"]


async def test_whether_the_timer_rings_soon():
    stage = Stage()
    assert not stage.driver.rings_within(1_000), "there is none"
    stage.core.due = stage.clock.now_ms() + 500
    stage.driver.wake()
    assert stage.driver.rings_within(1_000)
    assert not stage.driver.rings_within(100)
    stage.driver.close()


async def test_events_out_of_timer_effects_are_handled():
    stage = Stage()
    original = stage.core.handle_timer
    stage.core.handle_timer = lambda now_ms: [*original(now_ms), lambda: stage.driver.submit("from the timer")]
    stage.core.answers = {"from the timer": ["its effect"]}
    stage.core.due = stage.clock.now_ms()
    stage.driver.wake()
    await stage.until(lambda: "its effect" in stage.performed)


async def test_after_close_no_timer_rings_and_none_is_armed():
    stage = Stage()
    stage.core.due = stage.clock.now_ms() + 10
    stage.driver.wake()
    stage.driver.close()
    stage.driver.submit("late")
    passed = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(0.05, passed.set_result, None)
    await passed
    assert stage.core.events == ["late"]
    assert stage.core.timer_calls == []


async def test_an_exception_of_a_core_is_the_callers_and_the_driver_still_works():
    stage = Stage()
    stage.core.answers = {"bad": ValueError("a bug"), "good": ["fine"]}
    with pytest.raises(ValueError, match="a bug"):
        stage.driver.submit("bad")
    stage.driver.submit("good")
    assert stage.performed == ["fine"]


async def test_an_exception_in_a_timer_reaches_the_loops_handler():
    stage = Stage()
    caught = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().set_exception_handler(lambda _loop, details: caught.set_result(details["exception"]))

    def fail(now_ms):
        stage.core.due = None
        raise RuntimeError("a bug")

    stage.core.handle_timer = fail
    stage.core.due = stage.clock.now_ms()
    stage.driver.wake()
    async with asyncio.timeout(DEADLINE_S):
        assert str(await caught) == "a bug"
