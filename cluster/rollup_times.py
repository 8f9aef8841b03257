"""Minutes, hours, quarters of days, days and weeks (from Monday) of UTC."""

from datetime import UTC, datetime, timedelta

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
QUARTER = timedelta(hours=6)
DAY = timedelta(days=1)
WEEK = timedelta(days=7)
_MONDAY = datetime(2001, 1, 1, tzinfo=UTC)


def floor_to(width: timedelta, instant: datetime) -> datetime:
    """The begin of what an instant is in."""
    return instant - (instant - _MONDAY) % width


def ceil_to(width: timedelta, instant: datetime) -> datetime:
    """The end of it, or the instant itself where something begins."""
    return instant + (_MONDAY - instant) % width
