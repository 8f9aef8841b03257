"""What becomes of failures between the engines and whoever records them."""

import asyncio
import functools
import socket
import time

import msgspec
import pytest
from probe_scripts import WAIT_S, Peer, answer, check, free_port, spec, until

from worker.probe.errors import LOCAL_CAUSES, ProbeError
from worker.probe.in_flight import PollInFlight
from worker.probe.interface import FailedOutcome, ProbeOutcome, probe
from worker.probe.own_fault import UNRELATED_MIN
from worker.probe.own_fault_sieve import LOOKS_MAX, OwnFaultSieve

# TCP has no multicast: refused by the kernel as unreachable, and no packet leaves.
UNREACHABLE = [f"http://{225 + number}.0.0.1/" for number in range(UNRELATED_MIN)]
FROM_AFAR = ProbeOutcome("success", 200, 5.0, remote_address="10.1.2.3")


class Machine:
    def __init__(self) -> None:
        self.routes = True
        self.name_servers = True
        self.asked = 0
        self.silent = asyncio.Event()  # while it is not set, asking lasts
        self.silent.set()
        self.names_answered_at = 0.0

    def has_route(self, _address: str | None) -> bool:
        return self.routes

    async def name_servers_answer(self) -> bool:
        self.asked += 1
        await self.silent.wait()
        return self.name_servers


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
async def sieve(machine):
    made = OwnFaultSieve(
        lambda: machine.names_answered_at,
        has_route=machine.has_route,
        name_servers_answer=machine.name_servers_answer,
    )
    yield made
    await made.close()


@pytest.fixture
def sift(sieve):
    """Poll all of them at once, through the sieve; the outcomes in the order of the URLs."""

    async def poll_all(prober, urls, **fields) -> list[ProbeOutcome]:
        found = {}

        def done(number: int, outcome: ProbeOutcome) -> None:
            deliver = functools.partial(found.__setitem__, number)
            passed = sieve.sift(outcome, deliver)
            if passed is not None:
                deliver(passed)

        for number, url in enumerate(urls):
            prober.start(spec(url, number=number, **fields), functools.partial(done, number))
        await until(lambda: len(found) == len(urls))
        for outcome in found.values():
            check(outcome)
            assert type(outcome) is ProbeOutcome, "a result is made of its fields"
        return [found[number] for number in range(len(urls))]

    return poll_all


def unavailable(host: str, port: int):
    raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


async def test_many_that_are_unreachable_at_once_are_not_at_fault(make_prober, sieve, sift):
    outcomes = await sift(make_prober(), UNREACHABLE)
    assert {(each.status, each.error_code) for each in outcomes} == {("unknown", "local")}
    assert "5 unrelated hosts could not be reached within a second" in outcomes[0].error_message
    assert "connecting to 225.0.0.1:80: network is unreachable (ENETUNREACH)" in outcomes[0].error_message
    assert sieve.take_causes() == {"network": UNRELATED_MIN}
    assert sieve.take_causes() == {}


async def test_fewer_are_and_are_known_within_a_second(make_prober, sieve, sift):
    begun_at = time.monotonic()
    outcomes = await sift(make_prober(), UNREACHABLE[1:])
    assert {(each.status, each.error_code) for each in outcomes} == {("failure", "connect_unreachable")}
    assert all("ENETUNREACH" in each.error_message for each in outcomes)
    assert 0.8 < time.monotonic() - begun_at < 3.0
    assert sieve.take_causes() == {}


async def test_fewer_without_a_route_are_not(make_prober, sieve, sift, machine):
    machine.routes = False
    (outcome,) = await sift(make_prober(), UNREACHABLE[:1])
    assert (outcome.status, outcome.error_code) == ("unknown", "local")
    assert "no route" in outcome.error_message
    assert sieve.take_causes() == {"network": 1}


async def test_any_answer_from_afar_frees_them_at_once(make_prober, sieve, sift):
    polls = asyncio.ensure_future(sift(make_prober(), UNREACHABLE[1:]))
    await until(lambda: len(sieve._network) == UNRELATED_MIN - 1)
    assert sieve.asks
    assert sieve.sift(FROM_AFAR, pytest.fail) is FROM_AFAR
    assert not sieve.asks
    assert len(sieve._network) == 0
    assert {each.error_code for each in await polls} == {"connect_unreachable"}


async def test_a_status_that_is_not_expected_is_an_answer(sieve):
    mismatch = msgspec.structs.replace(FROM_AFAR, status="failure", error_code="status_mismatch", error_message="x")
    assert sieve.sift(mismatch, pytest.fail) is mismatch
    assert not sieve.asks
    sieve.ask()
    assert sieve.asks


async def test_this_machine_proves_nothing(serve, make_prober, sieve, sift):
    server = await serve(answer())
    (answered, refused) = await sift(make_prober(), [server.url(), f"http://127.0.0.1:{free_port()}/"])
    assert (answered.status, refused.error_code) == ("success", "connect_refused")
    assert sieve.asks, "nothing is known of the network"


async def test_a_host_on_this_machine_is_not_held(sieve):
    outcome = failed(ProbeError("connect_timeout", "time-out", "network"), "127.0.0.1:80")
    assert sieve.sift(outcome, pytest.fail) == outcome.found()


async def test_names_that_can_not_be_looked_up_are_not_at_fault(make_prober, sieve, sift, machine):
    machine.silent.clear()
    names = ["one", "two", "three", "four", "five"]
    outcomes = await sift(make_prober(lookup=unavailable), [f"http://{name}.test.{name}/" for name in names])
    assert {(each.status, each.error_code) for each in outcomes} == {("unknown", "local")}
    assert "5 unrelated hosts could not be looked up" in outcomes[0].error_message
    assert "looking up one.test.one: no answer for the time being" in outcomes[0].error_message
    assert sieve.take_causes() == {"resolver": UNRELATED_MIN}
    machine.silent.set()


@pytest.mark.parametrize(("is_answering", "expected"), [(True, ("failure", "dns")), (False, ("unknown", "local"))])
async def test_one_name_is_judged_by_its_name_servers(make_prober, sieve, sift, machine, is_answering, expected):
    machine.name_servers = is_answering
    (outcome,) = await sift(make_prober(lookup=unavailable), ["http://one.test/"])
    assert (outcome.status, outcome.error_code) == expected
    assert "one.test" in outcome.error_message
    assert machine.asked == 1
    assert sieve.take_causes() == ({} if is_answering else {"resolver": 1})


async def test_a_name_that_does_not_exist_is_an_answer_of_its_name_server(make_prober, sieve, sift, machine):
    prober = make_prober()  # its lookup knows of no such name
    (outcome,) = await sift(prober, ["http://nowhere.test/"])
    assert (outcome.status, outcome.error_code, machine.asked) == ("failure", "dns", 0)
    assert prober.names_answered_at > 0


async def test_names_of_this_machine_prove_nothing_of_name_servers(serve, make_prober):
    server = await serve(answer())
    prober = make_prober()
    assert (await probe(prober, spec(server.url("/", "good.test")))).status == "success"
    assert prober.names_answered_at == 0.0


async def test_a_name_that_was_found_speaks_for_the_resolver(make_prober, sift, sieve, machine):
    machine.silent.clear()
    names = ["one", "two", "three", "four", "five"]
    polls = asyncio.ensure_future(sift(make_prober(lookup=unavailable), [f"http://x.{name}/" for name in names[1:]]))
    await until(lambda: len(sieve._resolver) == UNRELATED_MIN - 1)
    machine.names_answered_at = time.monotonic()
    outcomes = await sift(make_prober(lookup=unavailable), ["http://x.one/"])
    assert {each.error_code for each in [*outcomes, *await polls]} == {"dns"}
    machine.silent.set()


async def test_silence_on_a_kept_connection_may_be_the_networks(serve, make_prober):
    async def once(peer: Peer) -> None:
        await peer.request()
        peer.send(answer())
        await peer.request()
        await peer.gone()

    server = await serve(once)
    prober = make_prober()
    assert (await probe(prober, spec(server.url()))).status == "success"
    outcome = await asyncio.wait_for(probe(prober, spec(server.url(), timeout_ms=150)), WAIT_S)
    assert (outcome.error_code, outcome.cause, outcome.address) == ("read_timeout", "network", "127.0.0.1")


async def test_silence_on_a_new_connection_is_the_targets(serve, make_prober):
    async def silent(peer: Peer) -> None:
        await peer.gone()

    server = await serve(silent)
    outcome = await asyncio.wait_for(probe(make_prober(), spec(server.url(), timeout_ms=150)), WAIT_S)
    assert (outcome.error_code, outcome.cause) == ("read_timeout", None)


async def test_nothing_of_what_was_measured_changes(sieve, machine):
    machine.routes = False
    outcome = failed(ProbeError("connect_timeout", "time-out", "network"), "10.1.2.3:80")
    outcome = msgspec.structs.replace(outcome, dns_ms=1.5, remote_address="10.1.2.3")
    delivered = []
    assert sieve.sift(outcome, delivered.append) is None
    (found,) = delivered
    assert (found.dns_ms, found.remote_address, found.status) == (1.5, "10.1.2.3", "unknown")
    assert found.error_message.endswith("; time-out")


async def test_answers_that_wait_to_be_read_are_read_first(sieve):
    """The loop stands still until long after the window is over; what came meanwhile is an answer."""
    delivered = []
    for number in range(UNRELATED_MIN):
        outcome = failed(ProbeError("connect_unreachable", "x", "network"), f"10.{number}.2.3:80")
        assert sieve.sift(outcome, delivered.append) is None
    theirs, ours = socket.socketpair()
    with theirs, ours:
        ours.setblocking(False)
        asyncio.get_running_loop().add_reader(ours, lambda: ours.recv(9) and sieve.sift(FROM_AFAR, pytest.fail))
        await asyncio.sleep(0)
        theirs.send(b"answer")
        until_at = time.monotonic() + 1.2
        while time.monotonic() < until_at:
            time.sleep(0.001)
        await until(lambda: len(delivered) == UNRELATED_MIN)
        asyncio.get_running_loop().remove_reader(ours)
    assert {each.error_code for each in delivered} == {"connect_unreachable"}


async def test_answers_of_this_machine_are_not_looked_at_for_ever(sieve):
    from_here = msgspec.structs.replace(FROM_AFAR, remote_address="127.0.0.1")
    looks = 0
    while sieve.asks:
        sieve.sift(from_here, pytest.fail)
        looks += 1
    assert looks == LOOKS_MAX
    sieve.ask()
    assert sieve.asks
    sieve.sift(failed(ProbeError("connect_unreachable", "x", "network"), "10.1.2.3:80"), lambda _: None)
    for _ in range(2 * LOOKS_MAX):
        sieve.sift(from_here, pytest.fail)
    assert sieve.asks, "something is held"


async def test_every_local_failure_is_counted_by_its_cause(sieve):
    for cause in LOCAL_CAUSES:
        outcome = failed(ProbeError("local", "x", cause), "10.1.2.3:80")
        assert sieve.sift(outcome, pytest.fail) == outcome.found()
    sieve.sift(failed(ProbeError("local", "no cause given"), ""), pytest.fail)
    assert sieve.take_causes() == {**dict.fromkeys(LOCAL_CAUSES, 1), "other": 2}


async def test_what_is_held_can_be_let_go(make_prober, sieve):
    delivered = []
    outcome = failed(ProbeError("connect_timeout", "time-out", "network"), "10.1.2.3:80")
    assert sieve.sift(outcome, delivered.append) is None
    assert delivered == []
    sieve.let_go()
    assert delivered == [outcome.found()]


def failed(error: ProbeError, peer: str) -> FailedOutcome:
    poll = PollInFlight(spec("http://a.test/"), pytest.fail)
    poll.peer = peer
    return poll.failed(error)
