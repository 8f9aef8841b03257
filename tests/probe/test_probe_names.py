"""Names to addresses: what is kept, what is shared, and that a dead name server delays only its own names."""

import asyncio
import socket
import threading
import time

import pytest
from probe_scripts import WAIT_S, address_info, answer, check, spec, until

from worker.probe import resolver as resolver_module
from worker.probe.errors import ProbeError
from worker.probe.interface import probe
from worker.probe.resolver import Resolver, Standing


def to(address, port):
    return [address_info(address, port)]


class NameService:
    """Answers from ``names``; what is in ``hanging`` is answered when it is let go; ``failing`` fails for now."""

    def __init__(self):
        self.names = {}
        self.hanging = {}
        self.failing = set()
        self.lookups = []
        self.most_at_once = self._now = 0
        self._lock = threading.Lock()

    def __call__(self, host, port):
        with self._lock:
            self.lookups.append(host)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            if host in self.hanging:
                assert self.hanging[host].wait(WAIT_S)
            if host in self.failing:
                raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
            if host not in self.names:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            found = self.names[host]
            return found if isinstance(found, list) else to(found, port)
        finally:
            with self._lock:
                self._now -= 1

    def hang(self, *hosts):
        for host in hosts:
            self.hanging[host] = threading.Event()

    def let_go(self):
        for event in self.hanging.values():
            event.set()


@pytest.fixture
def service():
    made = NameService()
    yield made
    made.let_go()


@pytest.fixture
async def resolver(service):
    made = Resolver(service)
    yield made
    made.close()


@pytest.fixture
def clock(monkeypatch):
    """Time goes on as it does, and on request."""

    class Clock:
        ahead_s = 0.0

        def monotonic(self):
            return time.monotonic() + self.ahead_s

    made = Clock()
    monkeypatch.setattr(resolver_module, "time", made)
    return made


def give(found):
    return [info[4] for info in found]


async def refused(resolver, host, port=80):
    with pytest.raises(ProbeError) as caught:
        await resolver.resolve(host, port)
    return caught.value.code


async def test_an_answer_is_kept_for_every_port_and_then_renewed(service, resolver, clock):
    service.names["a"] = "127.0.0.1"
    assert resolver.kept("a", 80) is None
    assert give(await resolver.resolve("a", 80)) == [("127.0.0.1", 80)]
    assert give(resolver.kept("a", 443)) == [("127.0.0.1", 443)]
    assert service.lookups == ["a"]
    clock.ahead_s += resolver_module.KEEP_S + 1
    assert resolver.kept("a", 80) is None
    service.names["a"] = "127.0.0.2"
    assert give(await resolver.resolve("a", 443)) == [("127.0.0.2", 443)]
    assert give(resolver.kept("a", 80)) == [("127.0.0.2", 80)]
    assert service.lookups == ["a", "a"]


async def test_ports_of_ipv6_addresses(service, resolver):
    service.names["six"] = [(socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("fe80::1", 80, 0, 3))]
    await resolver.resolve("six", 80)
    assert give(resolver.kept("six", 443)) == [("fe80::1", 443, 0, 3)]


async def test_one_lookup_at_a_time_whatever_the_port(service, resolver):
    service.names["a"] = "127.0.0.1"
    service.hang("a")
    waiting = [asyncio.ensure_future(resolver.resolve("a", port)) for port in (80, 443, 8080)]
    await until(lambda: service.lookups)
    waiting[0].cancel()
    service.let_go()
    assert give(await waiting[1]) == [("127.0.0.1", 443)]
    assert give(await waiting[2]) == [("127.0.0.1", 8080)]
    assert service.lookups == ["a"]


@pytest.mark.parametrize("failing", [True, False])
async def test_a_failure_is_kept_for_a_few_seconds(service, resolver, clock, failing):
    if failing:
        service.failing.add("a")
    for _ in range(3):
        assert await refused(resolver, "a") == "dns"
    assert service.lookups == ["a"]
    clock.ahead_s += resolver_module.KEEP_FAILURE_S + 1
    service.failing.clear()
    service.names["a"] = "127.0.0.1"
    assert give(await resolver.resolve("a", 80)) == [("127.0.0.1", 80)]


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), socket.gaierror(socket.EAI_MEMORY, "Memory")])
async def test_a_failure_of_this_machine_is_not_kept(service, error):
    def broken(host, port):
        service.lookups.append(host)
        raise error

    resolver = Resolver(broken)
    assert await refused(resolver, "a") == "local"
    assert await refused(resolver, "a") == "local"
    assert service.lookups == ["a", "a"]
    resolver.close()


async def test_no_address_and_no_name_are_failures(service, resolver):
    service.names["none"] = []
    assert await refused(resolver, "none") == "dns"

    def idna(host, port):
        host.encode("idna")

    other = Resolver(idna)
    assert await refused(other, "a" * 64) == "dns"
    other.close()


async def test_a_bug_reaches_who_asked(service):
    def broken(host, port):
        raise RuntimeError("a bug")

    resolver = Resolver(broken)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="a bug"):
            await resolver.resolve("a", 80)
    resolver.close()


# ---- old answers ----------------------------------------------------------------------------------------------------


async def test_an_old_answer_is_given_while_its_renewal_hangs(service, resolver, clock, monkeypatch):
    monkeypatch.setattr(resolver_module, "HANGS_S", 0.1)
    service.names["a"] = "127.0.0.1"
    await resolver.resolve("a", 80)
    clock.ahead_s += resolver_module.KEEP_S + 1
    service.hang("a")
    began = time.monotonic()
    assert give(await resolver.resolve("a", 443)) == [("127.0.0.1", 443)]
    assert time.monotonic() - began >= 0.09
    await until(lambda: resolver.kept("a", 80))  # a loop's timer may be early by a millisecond
    assert give(resolver.kept("a", 80)) == [("127.0.0.1", 80)], "nobody waits for what is known to hang"
    assert service.lookups == ["a", "a"]
    service.names["a"] = "127.0.0.2"
    service.let_go()
    await until(lambda: give(resolver.kept("a", 80) or []) == [("127.0.0.2", 80)])


async def test_an_old_answer_is_given_when_its_renewal_fails_for_now(service, resolver, clock):
    service.names["a"] = "127.0.0.1"
    await resolver.resolve("a", 80)
    clock.ahead_s += resolver_module.KEEP_S + 1
    service.failing.add("a")
    assert resolver.kept("a", 80) is None, "a renewal is due"
    assert give(await resolver.resolve("a", 80)) == [("127.0.0.1", 80)]
    assert give(resolver.kept("a", 80)) == [("127.0.0.1", 80)]
    clock.ahead_s += resolver_module.KEEP_FAILURE_S + 1
    assert resolver.kept("a", 80) is None, "the next renewal is due"
    assert give(await resolver.resolve("a", 80)) == [("127.0.0.1", 80)]
    assert service.lookups == ["a"] * 3
    clock.ahead_s += resolver_module.STALE_S
    assert resolver.kept("a", 80) is None
    assert await refused(resolver, "a") == "dns"
    assert resolver.kept("a", 80) is None


async def test_no_old_answer_is_given_for_a_name_that_is_no_more(service, resolver, clock):
    service.names["a"] = "127.0.0.1"
    await resolver.resolve("a", 80)
    clock.ahead_s += resolver_module.KEEP_S + 1
    del service.names["a"]
    assert await refused(resolver, "a") == "dns"
    assert resolver.kept("a", 80) is None


# ---- a name server that is dead -------------------------------------------------------------------------------------


async def test_hanging_lookups_leave_threads_to_other_names(service, resolver, monkeypatch):
    """Healthy names are answered at once: new ones beside slow ones, and ones that answered before beside all."""
    monkeypatch.setattr(resolver_module, "HANGS_S", 0.05)
    service.names |= {"known": "127.0.0.1", "new": "127.0.0.1"}
    await resolver.resolve("known", 80)
    assert resolver._names["known"].standing is Standing.PROVED

    slow = [f"slow-{number}" for number in range(Standing.SLOW.value + 10)]
    service.hang(*slow)
    first = [asyncio.ensure_future(resolver.resolve(host, 80)) for host in slow]
    await until(lambda: service.most_at_once == len(slow))
    begun = time.monotonic()
    await until(lambda: time.monotonic() - begun > resolver_module.HANGS_S)  # they are slow now
    service.let_go()
    assert all(isinstance(each, ProbeError) for each in await asyncio.gather(*first, return_exceptions=True))
    assert {resolver._names[host].standing for host in slow} == {Standing.SLOW}

    for host in slow:
        resolver._names[host].failed_until = 0.0
    service.hang(*slow)
    service.most_at_once = 0
    again = [asyncio.ensure_future(resolver.resolve(host, 80)) for host in slow]
    await until(lambda: service.most_at_once == Standing.SLOW.value)
    assert give(await asyncio.wait_for(resolver.resolve("new", 80), WAIT_S)) == [("127.0.0.1", 80)]

    dead = [f"dead-{number}" for number in range(3 * Standing.NEW.value)]
    service.hang(*dead)
    unknown = [asyncio.ensure_future(resolver.resolve(host, 80)) for host in dead]
    await until(lambda: service.most_at_once == Standing.NEW.value)
    resolver._names["known"].fresh_until = 0.0
    assert give(await asyncio.wait_for(resolver.resolve("known", 81), WAIT_S)) == [("127.0.0.1", 81)]
    assert service.most_at_once == Standing.NEW.value + 1

    service.let_go()
    await asyncio.gather(*again, *unknown, return_exceptions=True)
    assert resolver._running == 0
    assert not any(resolver._waiting.values())


async def test_polls_of_healthy_names_are_not_delayed_by_dead_ones(serve, make_prober, service):
    service.names["good.test"] = "127.0.0.1"
    server = await serve(answer(200, b"ok", "Connection: close"))
    prober = make_prober(lookup=service)
    url = server.url("/", "good.test")
    assert (await probe(prober, spec(url))).status == "success"
    dead = [f"dead-{number}.test" for number in range(200)]
    service.hang(*dead)
    polls = [asyncio.ensure_future(probe(prober, spec(f"http://{host}/", timeout_ms=1_500))) for host in dead]
    await until(lambda: service.most_at_once >= Standing.NEW.value)
    outcome = await probe(prober, spec(url, timeout_ms=1_000))
    check(outcome)
    assert outcome.status == "success"
    outcomes = await asyncio.gather(*polls)
    assert {outcome.error_code for outcome in outcomes} == {"dns"}


async def test_of_very_many_names_those_known_longest_are_forgotten(service, resolver, monkeypatch):
    monkeypatch.setattr(resolver_module, "KEPT_MAX", 3)
    service.names |= dict.fromkeys("abcd", "127.0.0.1")
    for host in "abcd":
        await resolver.resolve(host, 80)
    assert list(resolver._names) == ["b", "c", "d"]


def test_a_process_ends_while_its_lookups_hang():
    """The threads are daemons: nobody waits for a name server at the end."""
    done = threading.Event()
    threads = []

    def hang(host, port):
        threads.append(threading.current_thread())
        done.wait(WAIT_S)
        return []

    async def ask_and_leave():
        made = Resolver(hang)
        task = asyncio.ensure_future(made.resolve("a", 80))
        await until(lambda: threads)
        task.cancel()
        made.close()

    asyncio.run(ask_and_leave())
    (thread,) = threads
    assert thread.daemon
    done.set()
    thread.join(WAIT_S)
    assert not thread.is_alive()
