"""What of the cluster's own a worker must not poll, by its settings."""

import ipaddress
import socket
from types import SimpleNamespace

import pytest
from msgspec.structs import replace

from cluster import config
from worker import own_endpoints as module
from worker.own_endpoints import InterfaceAddresses, guard_of, own_endpoints
from worker.probe.guard import OwnEndpoint

STATUS = OwnEndpoint("status server", "", 8700)


@pytest.fixture(autouse=True)
def _no_postgres_variables(monkeypatch):
    for name in ("PGHOST", "PGPORT"):
        monkeypatch.delenv(name, raising=False)


def settings_of(**flags):
    return config.load({"data_dir": "/data", **flags}, {})


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, {STATUS}),
        ({"http": "[::1]:8700"}, {STATUS}),
        ({"http": "0.0.0.0:8700"}, {STATUS}),
        ({"http": "[::]:8700"}, {STATUS}),
        ({"http": "localhost:8700"}, {STATUS}),
        ({"http": "10.0.0.7:8700"}, {STATUS, OwnEndpoint("status server", "10.0.0.7", 8700)}),
        ({"http": "host.test:8700"}, {STATUS, OwnEndpoint("status server", "host.test", 8700)}),
        ({"database_url": "postgresql://db.test/x"}, {STATUS, OwnEndpoint("database", "db.test", 5432)}),
        ({"database_url": "postgresql://u:p@10.0.0.9:6432/x"}, {STATUS, OwnEndpoint("database", "10.0.0.9", 6432)}),
        ({"database_url": "postgresql://127.0.0.1:5433/x"}, {STATUS, OwnEndpoint("database", "", 5433)}),
        (
            {"database_url": "postgresql://postgres@/postgres?host=/data/run&port=5432"},  # as the embedded one's
            {STATUS, OwnEndpoint("database", "", 5432)},
        ),
    ],
)
def test_the_endpoints_are_those_of_the_settings(flags, expected):
    assert set(own_endpoints(settings_of(**flags))) == expected


@pytest.mark.parametrize("field", ["control_endpoint", "results_endpoint", "admin_endpoint"])
def test_messages_over_tcp_are_our_own(field):
    for address, host in (
        ("tcp://10.0.0.7:8710", "10.0.0.7"),
        ("tcp://*:8710", ""),
        ("tcp://[fd00::7]:8710", "fd00::7"),
    ):
        settings = replace(settings_of(), **{field: address})
        assert OwnEndpoint("messages", host, 8710) in own_endpoints(settings)


def test_the_interfaces_are_those_of_this_machine(monkeypatch):
    def fake():
        return {
            "lo": [snic(socket.AF_INET, "127.0.0.1"), snic(socket.AF_INET6, "::1"), snic(socket.AF_PACKET, "00:00")],
            "eth0": [snic(socket.AF_INET, "192.0.2.9"), snic(socket.AF_INET6, "fe80::9%eth0")],
        }

    def snic(family, address):
        return SimpleNamespace(family=family, address=address)

    real = InterfaceAddresses()()
    assert ipaddress.ip_address("127.0.0.1") in real
    monkeypatch.setattr("psutil.net_if_addrs", fake)
    found = InterfaceAddresses()()
    assert found == {ipaddress.ip_address(each) for each in ("127.0.0.1", "::1", "192.0.2.9", "fe80::9")}


def test_the_interfaces_are_looked_at_again(monkeypatch):
    now = [100.0]
    found = [{}]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr("psutil.net_if_addrs", lambda: found[0])
    interfaces = InterfaceAddresses()
    assert interfaces() == frozenset()
    found[0] = {"eth0": [SimpleNamespace(family=socket.AF_INET, address="192.0.2.9")]}
    now[0] += module.INTERFACES_KEEP_S - 0.1
    assert interfaces() == frozenset()
    now[0] += 0.2
    assert interfaces() == {ipaddress.ip_address("192.0.2.9")}


@pytest.mark.parametrize(
    ("flags", "allowed"),
    [
        ({}, True),
        ({"http": "0.0.0.0:8700"}, False),
        ({"http": "0.0.0.0:8700", "allow_private": "true"}, True),
        ({"allow_private": "false"}, False),
    ],
)
def test_the_guard_is_that_of_the_settings(flags, allowed):
    guard = guard_of(settings_of(database_url="postgresql://127.0.0.1:5433/x", **flags))
    assert (guard.refusal("127.0.0.1", 80) is None) == allowed
    assert guard.refusal("8.8.8.8", 80) is None
    assert guard.refusal("127.0.0.1", 8700) is not None
    assert guard.refusal("::1", 5433) is not None
    assert guard.refusal("8.8.8.8", 5433) is None
    assert guard.refusal("169.254.169.254", 80) is not None


def test_the_addresses_of_this_machine_have_our_ports_too():
    guard = guard_of(settings_of())
    for address in InterfaceAddresses()():
        assert guard.refusal(str(address), 8700) is not None
        assert guard.refusal(str(address), 8701) is None
