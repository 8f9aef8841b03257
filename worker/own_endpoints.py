"""What of the cluster's own a worker must not poll, from its settings; and the addresses of this machine.

A worker knows what its settings say: one that runs alone has to be told of ``http`` and ``database_url`` where the
others listen elsewhere than by default.
"""

import ipaddress
import socket
import time

import psutil

from cluster import config, database
from cluster.settings import Settings
from worker.probe.guard import Address, Guard, OwnEndpoint, kind_of

INTERFACES_KEEP_S = 5.0


def guard_of(settings: Settings) -> Guard:
    return Guard(
        allow_private=config.allows_private(settings),
        own=own_endpoints(settings),
        interfaces=InterfaceAddresses(),
    )


def own_endpoints(settings: Settings) -> list[OwnEndpoint]:
    host, port = config.split_address(settings.http)
    found = {
        OwnEndpoint("status server", "", port),
        OwnEndpoint("status server", _host(host), port),
    }
    if settings.database_url is not None:
        found |= {
            OwnEndpoint("database", _host(host), port) for host, port in database.endpoints_of(settings.database_url)
        }
    for endpoint in (settings.control, settings.results, settings.admin):
        scheme, _, address = endpoint.partition("://")
        if scheme == "tcp":
            host, port = config.split_address(address)
            found.add(OwnEndpoint("messages", _host(host), port))
    return sorted(found, key=lambda each: (each.port, each.what, each.host))


def _host(host: str) -> str:
    """Nothing for whatever means this machine."""
    return "" if host in {"", "*", "localhost"} or host.startswith("/") or kind_of(host).here else host


class InterfaceAddresses:
    """The addresses of this machine's interfaces, not older than ``INTERFACES_KEEP_S``."""

    def __init__(self) -> None:
        self._found: frozenset[Address] = frozenset()
        self._until = 0.0

    def __call__(self) -> frozenset[Address]:
        now = time.monotonic()
        if now >= self._until:
            self._found = frozenset(
                ipaddress.ip_address(each.address.partition("%")[0])
                for addresses in psutil.net_if_addrs().values()
                for each in addresses
                if each.family in {socket.AF_INET, socket.AF_INET6}
            )
            self._until = now + INTERFACES_KEEP_S
        return self._found
