"""Sets of HTTP statuses, and how ``expected_status`` writes them.  Pure.

Other tools judge the status of the last answer, after redirects.  ringpoll does not follow a redirect whose own status
is an expected one; so these statuses are left out of a set that has others, where redirects are followed.
"""

from collections.abc import Iterable
from typing import Any

from cluster.interchange.model import EntryBook

FINAL_STATUSES = frozenset(range(200, 600))
STATUSES = FINAL_STATUSES | {101}  # that a poll can end with
REDIRECTS = frozenset({301, 302, 303, 307, 308})


def written_set(statuses: Iterable[int]) -> str:
    """``2xx``, ``200-299,301``: hundreds as such, runs as ranges."""
    parts: list[str] = []
    ordered = sorted(STATUSES & set(statuses))
    at = 0
    while at < len(ordered):
        end = at
        while end + 1 < len(ordered) and ordered[end + 1] == ordered[end] + 1:
            end += 1
        first, last = ordered[at], ordered[end]
        at = end + 1
        if first % 100 == 0 and last == first + 99:
            parts.append(f"{first // 100}xx")
        else:
            parts.append(str(first) if first == last else f"{first}-{last}")
    return ",".join(parts)


def statuses_of(expected: str) -> frozenset[int]:
    """The set that a valid ``expected_status`` writes."""
    found: set[int] = set()
    for part in expected.split(","):
        first, dash, last = part.partition("-")
        if part.endswith("xx"):
            found |= set(range(int(part[0]) * 100, int(part[0]) * 100 + 100))
        else:
            found |= set(range(int(first), int(last if dash else first) + 1))
    return frozenset(found & STATUSES)


def expect_statuses(book: EntryBook, field: str, project: dict[str, Any], statuses: frozenset[int]) -> None:
    """Write the project's ``expected_status``; ``field`` is where the tool says it, ``follow_redirects`` is known."""
    expected, note = _followed(statuses, project.get("follow_redirects", True))
    if note is not None:
        book.approximated(field, note)
    project["expected_status"] = written_set(expected)


def _followed(statuses: frozenset[int], follow_redirects: bool) -> tuple[frozenset[int], str | None]:
    """The set to expect, and what is not quite the same about it."""
    if not follow_redirects or not statuses & REDIRECTS:
        return statuses, None
    rest = statuses - REDIRECTS
    if rest:
        return rest, None
    return statuses, "a redirect with an expected status is not followed"
