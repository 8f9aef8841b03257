"""Token buckets by key, in bounded memory, with the time as an argument.  Pure.

A bucket holds up to ``burst`` and fills by ``per_s``.  A key that isn't remembered has a full one, so one that has been
quiet long enough need not be: beyond KEYS_MAX keys the one that was used longest ago is forgotten.
"""

import ipaddress
from collections import OrderedDict

KEYS_MAX = 10_000
IPV6_SITE_BITS = 64  # what one customer has at least: an address of it costs nothing


class RateLimit:
    def __init__(self, *, burst: float, per_s: float, keys_max: int = KEYS_MAX) -> None:
        assert burst >= 1
        assert per_s > 0
        self.burst = burst
        self.per_s = per_s
        self._keys_max = keys_max
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what is left, as of when

    def __len__(self) -> int:
        return len(self._buckets)

    def wait_s(self, key: str, now_s: float) -> float:
        """In how many seconds this key may go on; 0: now.  Takes nothing."""
        return max(0.0, 1.0 - self._left(key, now_s)) / self.per_s

    def take(self, key: str, now_s: float) -> float:
        """Take one; 0 when there was one, else in how many seconds there will be, with nothing taken."""
        left = self._left(key, now_s)
        if left < 1.0:
            self._keep(key, left, now_s)
            return (1.0 - left) / self.per_s
        self._keep(key, left - 1.0, now_s)
        return 0.0

    def forgive(self, key: str) -> None:
        """What was taken was for nothing bad: the bucket is full again."""
        self._buckets.pop(key, None)

    def _left(self, key: str, now_s: float) -> float:
        left, at_s = self._buckets.get(key, (self.burst, now_s))
        return min(self.burst, left + max(0.0, now_s - at_s) * self.per_s)

    def _keep(self, key: str, left: float, now_s: float) -> None:
        self._buckets[key] = (left, now_s)
        self._buckets.move_to_end(key)
        while len(self._buckets) > self._keys_max:
            self._buckets.popitem(last=False)


def address_key(address: str | None) -> str:
    """What counts as one client: an IPv4 address, a site of IPv6."""
    if address is None:
        return "unknown"
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, IPV6_SITE_BITS), strict=False))
    return str(parsed)
