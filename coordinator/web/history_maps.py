"""History, as ``cluster.history`` gives it, made into what the API shows."""

from datetime import datetime
from typing import Any

import msgspec

from cluster.history import ListSummary, Summary
from coordinator.web.call import iso_ms, rounded_ms

PERIOD_S = {"1h": 3_600, "24h": 86_400, "7d": 7 * 86_400, "30d": 30 * 86_400, "90d": 90 * 86_400}


def period_s(period: str) -> int:
    return PERIOD_S[period]


def summary_map(summary: Summary | ListSummary) -> dict[str, Any]:
    found = rounded_ms(msgspec.structs.asdict(summary))
    found["since"] = iso_ms(summary.since)
    found["until"] = iso_ms(summary.until)
    if isinstance(summary, Summary):
        found["buckets"] = [_bucket(rounded_ms(msgspec.structs.asdict(bucket))) for bucket in summary.buckets]
    else:
        found["bars"] = [
            (polls, failures, None if p50_ms is None else round(p50_ms, 3)) for polls, failures, p50_ms in summary.bars
        ]
    return found


def _bucket(bucket: dict[str, Any]) -> dict[str, Any]:
    at: datetime = bucket["at"]
    bucket["at"] = iso_ms(at)
    return bucket
