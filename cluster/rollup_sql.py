"""SQL that the keeping of rollups (writer/rollup_steps.py) and their reading (cluster/history.py) have in common.

What a rollup says of some polls is the same whoever sums it up: FIGURES of polls, MERGED of rollups.
"""

COLUMNS = ("polls", "success", "failure", "unknown", "sum_ms", "min_ms", "max_ms", "sketch")


def begin_of(every: str, instant: str) -> str:
    """The begin (UTC) of the minute, hour or day that an instant is in.  Cheaper than date_trunc with a zone."""
    width = {"minute": "1 minute", "hour": "1 hour", "day": "1 day"}[every]
    return f"date_bin('{width}', {instant}, timestamptz '2001-01-01 00:00:00+00')"  # a Monday


# Of polls ``r``, joined to what each adds to a sketch.
FIGURES = """
    count(*)::int AS polls,
    (count(*) FILTER (WHERE r.status = 'success'))::int AS success,
    (count(*) FILTER (WHERE r.status = 'failure'))::int AS failure,
    (count(*) FILTER (WHERE r.status = 'unknown'))::int AS unknown,
    coalesce(sum(r.response_time_ms::float8) FILTER (WHERE r.status = 'success'), 0) AS sum_ms,
    min(r.response_time_ms) FILTER (WHERE r.status = 'success') AS min_ms,
    max(r.response_time_ms) FILTER (WHERE r.status = 'success') AS max_ms,
    sum(w.weight) AS sketch
"""

MERGED = """
    sum(polls)::int AS polls, sum(success)::int AS success, sum(failure)::int AS failure, sum(unknown)::int AS unknown,
    sum(sum_ms) AS sum_ms, min(min_ms) AS min_ms, max(max_ms) AS max_ms, sum(sketch) AS sketch
"""


def weights_of(bounds: str) -> str:
    """The join of polls ``r`` with the weights ``w`` of their buckets; ``bounds``: sketch.BOUNDS_MS as a parameter."""
    return (
        "LEFT JOIN rollup_weights w ON r.status = 'success' "
        f"AND w.bucket = width_bucket(r.response_time_ms::float8, {bounds})"
    )
