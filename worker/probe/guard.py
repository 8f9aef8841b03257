"""Which addresses a poll may connect to.  Pure: an address and a port in, a reason against them or None out.

- Never, whatever is configured: where clouds give out credentials (``METADATA``), and the cluster's own endpoints, at
  their hosts and, for those of this machine, at each of its addresses.
- Only where private addresses are allowed: whatever is no unicast address of the public Internet.
- An IPv6 address that carries an IPv4 address is judged as that one: mapped, compatible, translated (SIIT), NAT64
  (64:ff9b::/96), 6to4.  Teredo and the NAT64 of a local network (64:ff9b:1::/48) are private in themselves, and what
  they carry is refused where it is refused in any case.
- What is no address at all is refused.

It is for who connects to ask, with the very address that is connected to: what a name led to a moment before says
nothing.  It looks up nothing.  It can't know a NAT64 prefix that a network took out of its own addresses, nor a public
address from which some router leads to this machine.
"""

import functools
from collections.abc import Callable, Collection, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TypeAlias

import msgspec

Address: TypeAlias = IPv4Address | IPv6Address

KINDS_KEPT = 4_096

METADATA = frozenset(
    ip_address(text)
    for text in (
        "169.254.169.254",  # nearly all of them
        "169.254.170.2",  # credentials of containers (ECS)
        "169.254.170.23",  # credentials of pods (EKS)
        "169.254.0.23",  # Tencent
        "169.254.42.42",  # Scaleway
        "100.100.100.200",  # Alibaba
        "168.63.129.16",  # Azure's host
        "192.0.0.192",  # Oracle
        "fd00:ec2::254",  # EC2
        "fd00:ec2::23",  # EKS
        "fd20:ce::254",  # Google
        "fd00:42::42",  # Scaleway
        "fe80::a9fe:a9fe",  # OpenStack
    )
)

# What is no unicast address of the public Internet (IANA's registries of special-purpose addresses); the first counts.
_SPECIAL = (
    ("0.0.0.0/8", "an unspecified address"),
    ("10.0.0.0/8", "a private address"),
    ("100.64.0.0/10", "a provider's shared address"),
    ("127.0.0.0/8", "a loopback address"),
    ("169.254.0.0/16", "a link-local address"),
    ("172.16.0.0/12", "a private address"),
    ("192.0.0.0/24", "an address of protocols"),
    ("192.0.2.0/24", "a documentation address"),
    ("192.88.99.0/24", "a 6to4 relay's address"),
    ("192.168.0.0/16", "a private address"),
    ("198.18.0.0/15", "a benchmarking address"),
    ("198.51.100.0/24", "a documentation address"),
    ("203.0.113.0/24", "a documentation address"),
    ("224.0.0.0/4", "a multicast address"),
    ("255.255.255.255/32", "the broadcast address"),
    ("240.0.0.0/4", "a reserved address"),
    ("::/128", "an unspecified address"),
    ("::1/128", "a loopback address"),
    ("64:ff9b:1::/48", "a local network's NAT64 address"),
    ("100::/64", "a discarded address"),
    ("2001::/32", "a Teredo address"),
    ("2001:2::/48", "a benchmarking address"),
    ("2001::/23", "an address of protocols"),
    ("2001:db8::/32", "a documentation address"),
    ("3fff::/20", "a documentation address"),
    ("fc00::/7", "a private address"),
    ("fe80::/10", "a link-local address"),
    ("fec0::/10", "a site's address"),
    ("ff00::/8", "a multicast address"),
    ("::/3", "a reserved address"),
    ("4000::/2", "a reserved address"),
    ("8000::/1", "a reserved address"),
)  # fmt: skip

_IPV4_HERE = (IPv4Network("127.0.0.0/8"), IPv4Network("0.0.0.0/8"))
_IPV6_HERE = frozenset({IPv6Address("::"), IPv6Address("::1")})
_TEREDO = IPv6Network("2001::/32")
_LOCAL_NAT64 = IPv6Network("64:ff9b:1::/48")
_6TO4 = IPv6Network("2002::/16")
_LAST_32_BITS = tuple(
    int(IPv6Address(prefix)) >> 32 for prefix in ("::", "::ffff:0:0", "::ffff:0:0:0", "64:ff9b::")
)  # compatible, mapped, translated, NAT64
_32_BITS = 0xFFFF_FFFF


def _ranges(version: int) -> tuple[tuple[int, int, str], ...]:
    networks = ((ip_network(text), words) for text, words in _SPECIAL)
    return tuple(
        (int(network.network_address), int(network.broadcast_address), f"{words} ({network})")
        for network, words in networks
        if network.version == version
    )


_SPECIAL_RANGES = {version: _ranges(version) for version in (4, 6)}


class OwnEndpoint(msgspec.Struct, frozen=True):
    """Where a part of the cluster listens.  ``host``: an address, a name, or "" for all addresses of this machine."""

    what: str  # "status server"
    host: str
    port: int


class AddressKind(msgspec.Struct, frozen=True):
    """What is to be known of an address, whatever is configured."""

    faces: frozenset[Address]  # what a connection to it may lead to
    here: bool  # to this machine, on any machine
    never: str | None
    private: str | None


class Guard:
    """``interfaces``: the addresses of this machine now, but for loopback.  It is asked only at ports of ``own``."""

    def __init__(
        self,
        *,
        allow_private: bool,
        own: Collection[OwnEndpoint] = (),
        interfaces: Callable[[], Collection[Address]] = frozenset,
    ) -> None:
        self._allow_private = allow_private
        self._interfaces = interfaces
        self._own: dict[int, list[OwnEndpoint]] = {}
        self.names: dict[int, list[str]] = {}  # by port: what of our own can't be recognised before it is looked up
        for endpoint in own:
            self._own.setdefault(endpoint.port, []).append(endpoint)
            if endpoint.host and not _is_literal(endpoint.host):
                self.names.setdefault(endpoint.port, []).append(endpoint.host)

    def refusal(self, address: str, port: int, named: Mapping[str, Collection[str]] | None = None) -> str | None:
        """Why not, in words that continue "ADDRESS is ...".  ``named``: where ``names`` of the port lead to now."""
        kind = kind_of(address)
        if kind.never is not None:
            return kind.never
        if kind.private is not None and not self._allow_private:
            return f"{kind.private}, which is not polled without --allow-private"
        if port not in self._own:
            return None
        interfaces = frozenset(self._interfaces())
        is_here = kind.here or not kind.faces.isdisjoint(interfaces)
        for endpoint in self._own[port]:
            hosts = (named or {}).get(endpoint.host, (endpoint.host,))
            for host in hosts:
                if host:
                    other = kind_of(host)
                    found = not kind.faces.isdisjoint(other.faces)
                    found |= is_here and (other.here or not other.faces.isdisjoint(interfaces))
                else:
                    found = is_here
                if found:
                    return f"where the cluster's own {endpoint.what} is, at port {port}"
        return None


OPEN_GUARD = Guard(allow_private=True)


@functools.lru_cache(maxsize=KINDS_KEPT)
def kind_of(address: str) -> AddressKind:
    try:
        connected = ip_address(address.partition("%")[0])
    except ValueError:
        return AddressKind(frozenset(), here=False, never="no IP address", private=None)
    judged = carried_address(connected) or connected
    form = f"a form of {judged}, " if judged is not connected else ""
    faces = frozenset({connected, judged, *_perhaps_carried(connected)})
    return AddressKind(
        faces,
        here=any(judged in network for network in _IPV4_HERE) if judged.version == 4 else judged in _IPV6_HERE,
        never=None if faces.isdisjoint(METADATA) else f"{form}an address of cloud metadata",
        private=None if (words := _special(judged)) is None else form + words,
    )


def carried_address(address: Address) -> IPv4Address | None:
    """The IPv4 address that an IPv6 address stands for."""
    if isinstance(address, IPv4Address):
        return None
    number = int(address)
    if number >> 32 in _LAST_32_BITS and address not in _IPV6_HERE:
        return IPv4Address(number & _32_BITS)
    if address in _6TO4:
        return IPv4Address(number >> 80 & _32_BITS)
    return None


def _perhaps_carried(address: Address) -> list[IPv4Address]:
    """The IPv4 addresses to one of which a tunnel or a translator of its own may lead from there."""
    if isinstance(address, IPv4Address):
        return []
    number = int(address)
    if address in _TEREDO:
        return [IPv4Address(~number & _32_BITS)]
    if address in _LOCAL_NAT64:  # RFC 6052: behind a prefix of 48, 56, 64 or 96 bits; bits 64 to 71 are left out
        without_gap = (number >> 64) << 56 | number & (1 << 56) - 1
        shifts = [without_gap >> 120 - prefix - 32 & _32_BITS for prefix in (48, 56, 64)]
        return [IPv4Address(found) for found in (*shifts, number & _32_BITS)]
    return []


def _special(address: Address) -> str | None:
    number = int(address)
    return next((words for low, high, words in _SPECIAL_RANGES[address.version] if low <= number <= high), None)


def _is_literal(host: str) -> bool:
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
