"""What this machine knows of itself."""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest
from probe_scripts import until

from worker.probe import own_machine
from worker.probe.own_machine import has_route, name_servers, name_servers_answer


class NameServer(asyncio.DatagramProtocol):
    """Answers every question with a code; None: not at all."""

    def __init__(self, code: int | None, flags: int = 0x80) -> None:
        self.code = code
        self.flags = flags
        self.questions: list[bytes] = []

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, addr):
        self.questions.append(data)
        if self.code is not None:
            self.transport.sendto(data[:2] + bytes([data[2] | self.flags, 0x80 | self.code]) + data[4:], addr)


@pytest.fixture
async def name_server() -> AsyncIterator:
    async with contextlib.AsyncExitStack() as opened:

        async def start(code: int | None, flags: int = 0x80) -> tuple[NameServer, int]:
            transport, server = await asyncio.get_running_loop().create_datagram_endpoint(
                lambda: NameServer(code, flags), local_addr=("127.0.0.1", 0)
            )
            opened.callback(transport.close)
            return server, transport.get_extra_info("sockname")[1]

        yield start


@pytest.mark.parametrize("code", [0, 3, 5])  # an answer, no such name, refused
async def test_a_name_server_that_answers(name_server, code):
    server, port = await name_server(code)
    assert await name_servers_answer(["127.0.0.1"], port)
    assert len(server.questions) == 1
    assert server.questions[0][2:] == bytes.fromhex("0100 0001 0000 0000 0000 00 0002 0001")


@pytest.mark.parametrize(("code", "flags"), [(None, 0x80), (2, 0x80), (0, 0)])  # silent, has failed, our own question
async def test_a_name_server_that_does_not(name_server, monkeypatch, code, flags):
    monkeypatch.setattr(own_machine, "TRY_S", 0.05)
    server, port = await name_server(code, flags)
    assert not await name_servers_answer(["127.0.0.1"], port)
    assert len(server.questions) == own_machine.TRIES


async def test_nobody_listens(monkeypatch):
    monkeypatch.setattr(own_machine, "TRY_S", 0.05)
    assert not await name_servers_answer(["127.0.0.1", "::1"], 9)


async def test_one_of_them_is_enough(name_server):
    _, port = await name_server(0)
    assert await name_servers_answer(["127.0.0.2", "127.0.0.1"], port)


async def test_asking_can_be_called_off(name_server):
    server, port = await name_server(None)
    asking = asyncio.ensure_future(name_servers_answer(["127.0.0.1"], port))
    await until(lambda: server.questions)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nameserver 10.0.0.1\n# nameserver 10.0.0.2\nnameserver\t::1 \n", ["10.0.0.1", "::1"]),
        ("nameserver nonsense\noptions edns0\nnameserver\n", ["127.0.0.1"]),
        ("".join(f"nameserver 10.0.0.{number}\n" for number in range(5)), ["10.0.0.0", "10.0.0.1", "10.0.0.2"]),
        ("nameserver fe80::1%eth0", ["fe80::1%eth0"]),
        ("", ["127.0.0.1"]),
    ],
)
def test_the_name_servers(tmp_path, text, expected):
    path = tmp_path / "resolv.conf"
    path.write_text(text)
    assert name_servers(path) == expected


def test_no_list_of_name_servers(tmp_path):
    assert name_servers(tmp_path / "absent") == ["127.0.0.1"]


def test_there_is_a_route_to_this_machine():
    assert has_route("127.0.0.1")


def in_a_network_of_its_own(code: str) -> str:
    """Run Python where there is nothing but loopback, and that is down."""
    command = ["unshare", "--user", "--map-root-user", "--net", sys.executable, "-c", code]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        pytest.skip("no unshare on this machine")
    if done.returncode and "unshare" in done.stderr:
        pytest.skip(f"no network namespaces on this machine: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_a_network_there_is_no_route():
    out = in_a_network_of_its_own(
        "from worker.probe.own_machine import has_route\n"
        "print(has_route('10.1.2.3'), has_route('2001:db8::9'), has_route(None))"
    )
    assert out.split() == ["False", "False", "False"]


POLL_WITHOUT_A_NETWORK = """
import asyncio
import socket
from probe_scripts import spec
from worker.probe.choose import ChoosingProber
from worker.probe.own_fault_sieve import OwnFaultSieve

def unavailable(host, port):  # the system's own may ask a daemon that is in another network
    raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

async def main():
    prober = ChoosingProber(body_limit_bytes=1000, lookup=unavailable)
    sieve = OwnFaultSieve(lambda: prober.names_answered_at)
    urls = ["http://10.1.2.3/", "https://198.51.100.7/", "http://name.test/"]
    found = asyncio.Queue()
    for number, url in enumerate(urls):
        def done(outcome, number=number):
            deliver = lambda found_, number=number: found.put_nowait((number, found_))
            if (passed := sieve.sift(outcome, deliver)) is not None:
                deliver(passed)
        prober.start(spec(url, number=number, timeout_ms=20_000), done)
    for _ in urls:
        number, outcome = await asyncio.wait_for(found.get(), 30)
        print(number, outcome.status, outcome.error_code, outcome.error_message, sep="|")
    print(sorted(sieve.take_causes().items()))
    await prober.close(0)
    await sieve.close()

asyncio.run(main())
"""


def test_polls_without_a_network_are_unknown(request):
    """Few projects, by address and by name: from the engine's sockets to what is recorded."""
    code = f"import sys\nsys.path[:0] = {[str(request.path.parent), str(request.config.rootpath)]!r}\n"
    *lines, causes = in_a_network_of_its_own(code + POLL_WITHOUT_A_NETWORK).splitlines()
    outcomes = [line.split("|") for line in sorted(lines)]
    assert [each[:3] for each in outcomes] == [[str(number), "unknown", "local"] for number in range(3)]
    assert all("no route" in each[3] and "ENETUNREACH" in each[3] for each in outcomes[:2]), outcomes
    assert "none of this machine's name servers answers; looking up name.test" in outcomes[2][3]
    assert causes == "[('network', 2), ('resolver', 1)]"
