"""Polls that must not be made: a corpus of addresses and tricks, each through both engines; the guard's own laws."""

import asyncio
import ipaddress
import itertools
import socket

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from probe_scripts import WAIT_S, address_info, answer, check, redirect, spec

from worker.probe import resolver as resolver_module
from worker.probe.guard import METADATA, Guard, OwnEndpoint, carried_address, kind_of
from worker.probe.interface import probe

# What a name leads to, by the DNS or by someone who answers in its place.
NAMES = {
    "localhost": ["127.0.0.1", "::1"],
    "localhost.": ["127.0.0.1"],
    "127.0.0.1.": ["127.0.0.1"],
    "loopback.test": ["127.0.0.1"],
    "loopback6.test": ["::1"],
    "127.0.0.1.dns.test": ["127.0.0.1"],
    "intern.test": ["10.1.2.3"],
    "xn--bcher-kva.test": ["192.168.1.1"],
    "several.test": ["10.0.0.1", "172.16.0.1", "fd12::1"],
    "metadata.test": ["169.254.169.254"],
    "metadata.google.internal": ["169.254.169.254"],
    "mapped.test": ["::ffff:10.0.0.1"],
    "nat64.test": ["64:ff9b::7f00:1"],
    "any.test": ["0.0.0.0"],
    "scoped.test": ["fe80::1%1"],
}

# The authority, and what comes after it: who polls this gets somewhere inside.
PRIVATE = [
    "127.0.0.1/",
    "127.0.0.1:80/",
    "127.8.9.10/",
    "127.255.255.255/",
    "127.1/",
    "127.0.1/",
    "2130706433/",
    "0x7f000001/",
    "0x7F.1/",
    "0x7f.0x0.0x0.0x1/",
    "017700000001/",
    "0177.0.0.1/",
    "0177.0.0.01/",
    "127.0x0.0.1/",
    "0/",
    "0x0/",
    "0.0.0.0/",
    "0.1.2.3/",
    "10.0.0.1/",
    "10.255.255.255/",
    "167772161/",
    "10.1/",
    "012.0.0.1/",
    "100.64.0.1/",
    "100.127.255.255/",
    "169.254.1.1/",
    "172.16.0.1/",
    "172.31.255.255/",
    "192.0.0.1/",
    "192.0.2.1/",
    "192.88.99.1/",
    "192.168.0.1/",
    "192.168.257/",
    "3232235521/",
    "198.18.0.1/",
    "198.51.100.1/",
    "203.0.113.1/",
    "224.0.0.1/",
    "239.255.255.250/",
    "240.0.0.1/",
    "255.255.255.255/",
    "4294967295/",
    "[::]/",
    "[::1]/",
    "[0:0:0:0:0:0:0:1]/",
    "[0000::0001]:80/",
    "[::127.0.0.1]/",
    "[::7f00:1]/",
    "[::ffff:127.0.0.1]/",
    "[::ffff:7f00:1]/",
    "[::FFFF:10.0.0.1]/",
    "[0:0:0:0:0:ffff:c0a8:1]/",
    "[::ffff:0:127.0.0.1]/",
    "[::ffff:127.0.0.1%251]/",
    "[64:ff9b::127.0.0.1]/",
    "[64:ff9b::10.0.0.1]/",
    "[64:ff9b::c0a8:1]/",
    "[64:ff9b:1::8.8.8.8]/",
    "[64:ff9b:1:a00:0:100::]/",
    "[2002:7f00:1::]/",
    "[2002:a00:1::1]/",
    "[2001:0:4136:e378:8000:63bf:3fff:fdd2]/",
    "[2001:2::1]/",
    "[2001:10::1]/",
    "[2001:db8::1]/",
    "[3fff::1]/",
    "[100::1]/",
    "[fc00::1]/",
    "[fdff:ffff::1]/",
    "[fe80::1]/",
    "[fe80::1%251]/",
    "[fe80::1%25lo]/",
    "[febf::1]/",
    "[fec0::1]/",
    "[ff02::1]/",
    "[4000::1]/",
    "[5f00::1]/",
    "[1::1]/",
    "good.test@127.0.0.1/",
    "good.test:80@127.0.0.1/",
    "good.test%2f@127.0.0.1/",
    "good.test\\@127.0.0.1/",
    "a@b@127.0.0.1/",
    "good.test@[::1]/",
    "127.0.0.1?@good.test/",
    "127.0.0.1#@good.test/",
    "127.0.0.1:80?://good.test/",
    "\N{CIRCLED DIGIT ONE}\N{CIRCLED DIGIT TWO}\N{CIRCLED DIGIT SEVEN}.0.0.1/",
    "127\N{IDEOGRAPHIC FULL STOP}0\N{IDEOGRAPHIC FULL STOP}0\N{IDEOGRAPHIC FULL STOP}1/",
    "\N{FULLWIDTH DIGIT ONE}27.0.0.1/",
    "LOCALHOST/",
    *(f"{name}/" for name in NAMES),
]

# And this gets where nobody may, whatever is allowed.
METADATA_TRICKS = [
    *(f"[{each}]/" if each.version == 6 else f"{each}/" for each in sorted(METADATA, key=str)),
    "169.254.169.254:80/latest/meta-data/",
    "2852039166/",
    "0xa9fea9fe/",
    "0xA9.0xFE.0xA9.0xFE/",
    "0251.0376.0251.0376/",
    "169.254.43518/",
    "[::ffff:169.254.169.254]/",
    "[::a9fe:a9fe]/",
    "[::ffff:0:a9fe:a9fe]/",
    "[64:ff9b::a9fe:a9fe]/",
    "[64:ff9b:1::a9fe:a9fe]/",
    "[64:ff9b:1:a9fe:a9:fe00::]/",
    "[64:ff9b:1:a9:fe:a9fe::]/",
    "[64:ff9b:1:1:a9:fea9:fe00::]/",
    "[2002:a9fe:a9fe::1]/",
    "[2001:0:1:2:3:4:5601:5601]/",
    "[fd00:ec2:0:0::254]/",
    "[fe80::a9fe:a9fe%251]/",
    "good.test@169.254.169.254/",
    "metadata.test/",
    "metadata.google.internal/",
]

PUBLIC = [
    "1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0",
    "169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "191.255.255.255", "192.0.1.0", "192.0.3.0",
    "192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0", "223.255.255.255", "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8", "2002:808:808::1", "2001:200::1", "2001:db7::1", "2001:db9::1", "2400::1", "2606:4700::1111",
    "3ffe::1",
]  # fmt: skip

CLOSED = Guard(allow_private=False)
OPEN = Guard(allow_private=True)


def look_up(host, port):
    """What this machine's own lookup makes of a number, without asking anyone; else by ``NAMES``."""
    if host in NAMES:
        return [address_info(address, port) for address in NAMES[host]]
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)


class Permitting(Guard):
    """A closed guard with a hole: one port of 127.0.0.1."""

    def __init__(self, port, **options):
        super().__init__(allow_private=False, **options)
        self.port = port

    def refusal(self, address, port, named=None):
        return None if (address, port) == ("127.0.0.1", self.port) else super().refusal(address, port, named)


async def poll_with(prober, url, **fields):
    outcome = await asyncio.wait_for(probe(prober, spec(url, **fields)), WAIT_S)
    check(outcome)
    return outcome


def is_blocked(outcome):
    assert (outcome.status, outcome.error_code) == ("failure", "blocked"), outcome
    assert (outcome.connect_ms, outcome.tls_ms, outcome.first_byte_ms) == (None, None, None)
    assert outcome.remote_address is None
    return True


# ---- the corpus -----------------------------------------------------------------------------------------------------


def test_the_corpus_is_large_enough():
    assert len(set(PRIVATE)) >= 60
    assert len(set(METADATA_TRICKS)) >= 30


@pytest.mark.parametrize("rest", PRIVATE)
async def test_what_is_not_public_is_blocked(make_prober, rest):
    prober = make_prober(guard=CLOSED, lookup=look_up)
    outcome = await poll_with(prober, f"http://{rest}")
    assert is_blocked(outcome)
    assert "which is not polled without --allow-private" in outcome.error_message or "metadata" in outcome.error_message


@pytest.mark.parametrize("rest", METADATA_TRICKS)
@pytest.mark.parametrize("guard", [OPEN, CLOSED], ids=["open", "closed"])
async def test_metadata_is_blocked_whatever_is_allowed(make_prober, rest, guard):
    outcome = await poll_with(make_prober(guard=guard, lookup=look_up), f"http://{rest}")
    assert is_blocked(outcome)
    assert "an address of cloud metadata" in outcome.error_message


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "0x7f.1", "2130706433", "0", "loopback.test", "mapped4.test"])
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_nothing_arrives_where_it_is_blocked(serve, make_prober, host, scheme):
    def lookup(host, port):
        return [address_info("::ffff:127.0.0.1", port)] if host == "mapped4.test" else look_up(host, port)

    server = await serve(answer())
    prober = make_prober(guard=CLOSED, lookup=lookup)
    assert is_blocked(await poll_with(prober, f"{scheme}://{host}:{server.port}/"))
    assert server.connections == 0
    # The same is polled where it may be: it is the guard that kept it out.
    if scheme == "http":
        assert (await poll_with(make_prober(lookup=lookup), f"http://{host}:{server.port}/")).status == "success"


async def test_the_message_names_host_address_and_rule(make_prober):
    outcome = await poll_with(make_prober(guard=CLOSED, lookup=look_up), "http://intern.test:81/")
    assert outcome.error_message == (
        "intern.test:81 is not polled: 10.1.2.3 is a private address (10.0.0.0/8), which is not polled without "
        "--allow-private"
    )
    outcome = await poll_with(make_prober(guard=CLOSED, lookup=look_up), "http://several.test/")
    assert outcome.error_message.startswith("several.test:80 is not polled: 10.0.0.1 is a private address (10.0.0.0/8)")
    assert outcome.error_message.endswith("(its other addresses, 2, are refused, too)")
    outcome = await poll_with(make_prober(guard=CLOSED), "http://[64:ff9b::10.0.0.1]/")
    assert "64:ff9b::10.0.0.1 is a form of 10.0.0.1, a private address (10.0.0.0/8)" in outcome.error_message


# ---- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("others", [["10.0.0.1"], ["10.0.0.1", "::1", "169.254.169.254"], ["::ffff:127.0.0.1"]])
@pytest.mark.parametrize("secure", [False, True])
async def test_of_a_names_addresses_the_others_are_used(serve, make_prober, others, secure, server_tls):
    server = await serve(answer(), server_tls if secure else None)

    def lookup(_host, port):
        return [address_info(address, port) for address in [*others, "127.0.0.1"]]

    outcome = await poll_with(make_prober(guard=Permitting(server.port), lookup=lookup), server.url("/", "good.test"))
    assert (outcome.status, outcome.remote_address) == ("success", "127.0.0.1")
    assert server.connections == 1


@pytest.fixture
async def twins():
    """Two servers at one port, the second one at 127.0.0.2: their connections are counted."""
    connections = {"127.0.0.1": 0, "127.0.0.2": 0}
    servers = []

    def script(address):
        async def serve_one(reader, writer):
            connections[address] += 1
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer(200, b"", "Connection: close"))
            writer.close()

        return serve_one

    port = 0
    for address in connections:
        servers.append(await asyncio.start_server(script(address), address, port))
        port = servers[-1].sockets[0].getsockname()[1]
    yield port, connections
    for server in servers:
        server.close()


async def test_a_name_that_is_bound_anew_gains_nothing(make_prober, twins, monkeypatch):
    """Whatever a name leads to afterwards: what is connected to is the address that was checked."""
    port, connections = twins
    monkeypatch.setattr(resolver_module, "KEEP_S", 0.0)  # each new connection looks it up
    found = itertools.chain(["127.0.0.1"], itertools.repeat("127.0.0.2"))
    lookups = []

    def rebinding(host, port):
        lookups.append(host)
        return [address_info(next(found), port)]

    prober = make_prober(guard=Permitting(port), lookup=rebinding)
    outcome = await poll_with(prober, f"http://rebind.test:{port}/")
    assert (outcome.status, outcome.remote_address) == ("success", "127.0.0.1")
    assert lookups == ["rebind.test"]
    outcome = await poll_with(prober, f"http://rebind.test:{port}/")
    assert is_blocked(outcome)
    assert outcome.dns_ms is not None
    assert len(lookups) == 2
    assert connections == {"127.0.0.1": 1, "127.0.0.2": 0}


async def test_a_name_that_is_bound_anew_between_two_hops_gains_nothing(serve, make_prober, twins, monkeypatch):
    port, connections = twins
    monkeypatch.setattr(resolver_module, "KEEP_S", 0.0)
    first = await serve(redirect(302, f"http://rebind.test:{port}/", "Connection: close"))
    found = itertools.chain(["127.0.0.1"], itertools.repeat("127.0.0.2"))

    def rebinding(_host, port):
        return [address_info(next(found), port)]

    guard = Permitting(first.port)
    outcome = await poll_with(make_prober(guard=guard, lookup=rebinding), f"http://rebind.test:{first.port}/")
    assert outcome.error_code == "blocked"
    assert first.connections == 1
    assert connections == {"127.0.0.1": 0, "127.0.0.2": 0}


async def test_a_lookup_that_gives_no_address_is_blocked(make_prober):
    def lookup(_host, port):
        return [address_info("other.test", port)]

    outcome = await poll_with(make_prober(lookup=lookup), "http://good.test/")
    assert is_blocked(outcome)
    assert outcome.error_message == "good.test:80 is not polled: other.test is no IP address"


# ---- redirects ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.2/", "http://10.0.0.1/", "https://192.168.0.1/", "//10.0.0.1/", "http://[::1]/",
        "http://[::ffff:127.0.0.1]/", "http://[64:ff9b::a00:1]/", "http://169.254.169.254/latest/", "http://2130706433/",
        "http://0x7f.1/", "http://good.test@10.0.0.1/", "http://intern.test/", "http://metadata.test/", "HTTP://10.0.0.1",
    ],
)  # fmt: skip
@pytest.mark.parametrize("status", [302, 307])
async def test_a_redirect_inside_is_blocked(serve, make_prober, location, status):
    server = await serve(redirect(status, location))
    prober = make_prober(guard=Permitting(server.port), lookup=look_up)
    outcome = await poll_with(prober, server.url("/a"))
    assert (outcome.status, outcome.error_code) == ("failure", "blocked"), outcome
    assert outcome.remote_address is None
    assert [request.target for request in server.requests] == ["/a"]


async def test_a_redirect_to_another_port_of_the_same_host_is_checked(serve, make_prober):
    inside = await serve(answer())
    server = await serve(redirect(302, inside.url("/")))
    outcome = await poll_with(make_prober(guard=Permitting(server.port)), server.url())
    assert outcome.error_code == "blocked"
    assert inside.connections == 0


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd", "gopher://127.0.0.1:6379/_INFO", "ftp://10.0.0.1/", "dict://127.0.0.1:11211/stat",
        "ldap://127.0.0.1/", "data:,x", "javascript:0", "jar:http://10.0.0.1/!/", "ws://127.0.0.1/", "FILE:/etc/passwd",
        "unix:/run/docker.sock", "httpx://good.test/",
    ],
)  # fmt: skip
async def test_a_redirect_to_another_scheme_is_blocked(serve, poll, location):
    server = await serve(redirect(302, location))
    outcome = await poll(server.url())
    assert (outcome.status, outcome.error_code, outcome.status_code) == ("failure", "blocked", 302)
    assert outcome.error_message == (
        f"127.0.0.1:{server.port} redirects to where polls don't go: not an http:// or https:// URL: {location!r}"
    )


@pytest.mark.parametrize("url", ["file:///etc/passwd", "gopher://127.0.0.1:6379/_INFO", "unix:/run/docker.sock"])
async def test_a_project_of_another_scheme_is_no_request(poll, url):
    """The table refuses it; a row that got past it fails before anything is opened."""
    assert (await poll(url)).error_code == "invalid_request"


SECRETS = (
    ("Authorization", "s"), ("Proxy-Authorization", "s"), ("Cookie", "s"), ("X-Api-Key", "s"), ("X-Forwarded-For", "s"),
    ("Metadata-Flavor", "s"), ("X-aws-ec2-metadata-token", "s"), ("Referer", "s"), ("Host", "s.test"),
)  # fmt: skip


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("elsewhere", ["port", "name", "scheme"])
async def test_nothing_of_the_projects_own_follows_to_another_origin(serve, make_prober, server_tls, status, elsewhere):
    other = await serve(answer(), server_tls if elsewhere == "scheme" else None)
    server = await serve(redirect(status, other.url("/b", "good.test" if elsewhere != "port" else None)))
    url = server.url("/a", "user:secret@127.0.0.1")
    for headers in (SECRETS, SECRETS[1:]):  # without its own Authorization that of the URL would be sent
        assert (await poll_with(make_prober(), url, headers=headers)).status == "success"
        at_home, away = server.requests[-1], other.requests[-1]
        assert at_home.header("X-Api-Key") == "s"
        assert at_home.header("Authorization") == ("s" if headers is SECRETS else "Basic dXNlcjpzZWNyZXQ=")
        assert {name.lower() for name, _ in away.headers} <= {"host", "user-agent", "accept", "content-length"}
        assert away.header("Host") == str(other.url("", "good.test" if elsewhere != "port" else None)).split("/")[2]


# ---- what is our own ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.5", "0.0.0.0", "0", "127.1", "[::ffff:127.0.0.1]", "[::1]", "[::]", "localhost",
     "192.0.2.9", "[2001:db8::9]", "[::ffff:192.0.2.9]", "[fe80::9%251]"],
)  # fmt: skip
async def test_our_own_port_is_blocked_at_every_address_of_this_machine(serve, make_prober, host):
    server = await serve(answer())
    interfaces = {ipaddress.ip_address(each) for each in ("192.0.2.9", "2001:db8::9", "fe80::9")}
    own = [OwnEndpoint("status server", "", server.port)]
    guard = Guard(allow_private=True, own=own, interfaces=lambda: interfaces)
    outcome = await poll_with(make_prober(guard=guard, lookup=look_up), f"http://{host}:{server.port}/")
    assert is_blocked(outcome)
    assert f"is where the cluster's own status server is, at port {server.port}" in outcome.error_message
    assert server.connections == 0


async def test_other_ports_of_this_machine_and_that_port_of_others_are_none_of_ours(serve, make_prober):
    server = await serve(answer())
    own = [OwnEndpoint("status server", "", server.port + 1), OwnEndpoint("database", "192.0.2.9", server.port)]
    guard = Guard(allow_private=True, own=own)
    assert (await poll_with(make_prober(guard=guard), server.url())).status == "success"
    assert guard.refusal("192.0.2.8", server.port + 1) is None
    assert guard.refusal("192.0.2.9", server.port + 1) is None
    assert guard.refusal("192.0.2.9", server.port) is not None
    assert guard.refusal("::ffff:192.0.2.9", server.port) is not None


async def test_a_redirect_to_our_own_port_is_blocked(serve, make_prober):
    status = await serve(answer())
    server = await serve(redirect(302, status.url("/status")))
    guard = Guard(allow_private=True, own=[OwnEndpoint("status server", "", status.port)])
    outcome = await poll_with(make_prober(guard=guard), server.url())
    assert outcome.error_code == "blocked"
    assert status.connections == 0


def test_an_endpoint_at_an_interface_of_ours_is_at_each_address_of_ours():
    interfaces = {ipaddress.ip_address("192.0.2.9")}
    guard = Guard(allow_private=True, own=[OwnEndpoint("database", "192.0.2.9", 5432)], interfaces=lambda: interfaces)
    assert guard.refusal("127.0.0.1", 5432) is not None
    assert guard.refusal("192.0.2.10", 5432) is None


def test_the_interfaces_are_looked_at_only_for_ports_of_ours():
    def interfaces():
        raise AssertionError("asked")

    guard = Guard(allow_private=True, own=[OwnEndpoint("database", "", 5432)], interfaces=interfaces)
    assert guard.refusal("192.0.2.9", 80) is None
    with pytest.raises(AssertionError, match="asked"):
        guard.refusal("192.0.2.9", 5432)


async def test_the_names_of_our_own_are_looked_up(serve, make_prober):
    server = await serve(answer())
    beside = await serve(answer())
    leads_to = {"database.test": ["192.0.2.1", "127.0.0.1"]}

    def lookup(host, port):
        return [address_info(address, port) for address in leads_to[host]]

    guard = Guard(allow_private=True, own=[OwnEndpoint("database", "database.test", server.port)])
    prober = make_prober(guard=guard, lookup=lookup)
    outcome = await poll_with(prober, server.url())
    assert is_blocked(outcome)
    assert outcome.dns_ms is None  # not of the target
    assert server.connections == 0
    assert (await poll_with(prober, beside.url())).status == "success"
    leads_to["database.test"] = ["192.0.2.1"]
    assert (await poll_with(make_prober(guard=guard, lookup=lookup), server.url())).status == "success"


async def test_a_name_of_our_own_that_cannot_be_looked_up_says_nothing_of_the_target(serve, make_prober, names):
    server = await serve(answer())
    guard = Guard(allow_private=True, own=[OwnEndpoint("database", "gone.test", server.port)])
    outcome = await poll_with(make_prober(guard=guard), server.url())
    assert (outcome.status, outcome.error_code) == ("unknown", "local")
    assert f"may be what the cluster has at gone.test:{server.port}" in outcome.error_message
    assert server.connections == 0
    assert names.lookups == ["gone.test"]


# ---- laws of the guard ----------------------------------------------------------------------------------------------

OWN_PORT = 5432
GUARDS = [
    CLOSED,
    OPEN,
    Guard(
        allow_private=True,
        own=[OwnEndpoint("status server", "", OWN_PORT), OwnEndpoint("database", "8.8.4.4", OWN_PORT)],
        interfaces=lambda: {ipaddress.ip_address("8.8.8.8")},
    ),
]


def forms(number):
    """An IPv4 address in IPv6 addresses that stand for it."""
    for prefix in ("::ffff:0:0", "::ffff:0:0:0", "64:ff9b::"):
        yield str(ipaddress.IPv6Address(int(ipaddress.IPv6Address(prefix)) | number))
    for rest in (0, 1, (1 << 80) - 1):
        yield str(ipaddress.IPv6Address(0x2002 << 112 | number << 80 | rest))
    if number > 1:  # :: and ::1 are themselves
        yield str(ipaddress.IPv6Address(number))


@given(st.integers(0, (1 << 32) - 1))
@example(int(ipaddress.ip_address("169.254.169.254")))
@example(int(ipaddress.ip_address("127.0.0.1")))
@example(int(ipaddress.ip_address("8.8.8.8")))
@example(int(ipaddress.ip_address("8.8.4.4")))
@example(0)
@example(1)
def test_every_form_of_an_address_gets_its_verdict(number):
    address = ipaddress.IPv4Address(number)
    for guard, form in itertools.product(GUARDS, forms(number)):
        assert carried_address(ipaddress.ip_address(form)) == address
        for port in (80, OWN_PORT):
            verdict, plain = guard.refusal(form, port), guard.refusal(str(address), port)
            assert (None if verdict is None else verdict.removeprefix(f"a form of {address}, ")) == plain


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_what_passes_a_closed_guard_is_public(address):
    judged = carried_address(address) or address
    if CLOSED.refusal(str(address), 80) is None:
        assert judged.is_global
        assert not judged.is_multicast
        assert not judged.is_reserved
        assert not judged.is_link_local


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_an_open_guard_refuses_metadata_only(address):
    assert (OPEN.refusal(str(address), 80) is None) == kind_of(str(address)).faces.isdisjoint(METADATA)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_pass(address):
    assert CLOSED.refusal(address, 80) is None


@pytest.mark.parametrize("address", ["", "x", "1.2.3", "01.2.3.4", "::g", "127.0.0.1 ", "localhost", "1.2.3.4/8"])
def test_what_is_no_address_is_refused(address):
    assert OPEN.refusal(address, 80) == "no IP address"


@pytest.mark.parametrize(
    ("address", "rule"),
    [
        ("::1", "a loopback address (::1/128)"),
        ("::", "an unspecified address (::/128)"),
        ("::ffff:127.0.0.1", "a form of 127.0.0.1, a loopback address (127.0.0.0/8)"),
        ("2001::1", "a Teredo address (2001::/32)"),
        ("64:ff9b:1::1", "a local network's NAT64 address (64:ff9b:1::/48)"),
        ("255.255.255.255", "the broadcast address (255.255.255.255/32)"),
        ("fe80::1%eth0", "a link-local address (fe80::/10)"),
        ("9000::", "a reserved address (8000::/1)"),
    ],
)
def test_the_rule_is_named(address, rule):
    assert CLOSED.refusal(address, 80) == f"{rule}, which is not polled without --allow-private"
