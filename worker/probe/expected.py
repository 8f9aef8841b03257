"""Expected-status sets: ``200``, ``2xx``, ``200-299,301``.  Pure; parsed once per distinct text.

It does not know what a redirect is: whether one is followed is decided in ``request`` by asking this set first.
"""

import functools
import re

_PART = re.compile(r"(?P<family>[1-5])[xX]{2}|(?P<first>[1-5]\d\d)(?:\s*-\s*(?P<last>[1-5]\d\d))?")
CACHE_MAX = 1_024


@functools.lru_cache(maxsize=CACHE_MAX)
def parse_expected(text: str) -> frozenset[int]:
    """The statuses a set names.  Raises ValueError, in words for people, when it names none or can't be read."""
    statuses: set[int] = set()
    for raw in text.split(","):
        part = _PART.fullmatch(raw.strip())
        if part is None:
            raise ValueError(f"expected status {text!r} is not a set like '200', '2xx' or '200-299,301'")
        if part["family"]:
            first = int(part["family"]) * 100
            last = first + 99
        else:
            first = int(part["first"])
            last = int(part["last"] or first)
        if last < first:
            raise ValueError(f"expected status {text!r} has a range that ends before it begins")
        statuses.update(range(first, last + 1))
    return frozenset(statuses)
