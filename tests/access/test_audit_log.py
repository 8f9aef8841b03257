"""The audit log is written with the change, and read a page at a time."""

from cluster.access import audit_log
from cluster.access.audit_log import AuditEntry


def entry(number=1, actor="token:ci", **changes):
    return AuditEntry(**({"actor": actor, "action": "project.update", "subject": f"project:{number}"} | changes))


async def test_what_is_recorded_is_read_newest_first(conn):
    await audit_log.record(conn, entry(1, address="10.0.0.7", details={"fields": ["url", "name"]}))
    await audit_log.record(conn, entry(2, "user:ann"), entry(3))
    found = await audit_log.read(conn)
    assert [(each.subject, each.actor) for each in found] == [
        ("project:3", "token:ci"), ("project:2", "user:ann"), ("project:1", "token:ci"),
    ]  # fmt: skip
    assert (found[2].details, found[2].address, found[2].action) == (
        {"fields": ["url", "name"]}, "10.0.0.7", "project.update",
    )  # fmt: skip
    assert found[0].at >= found[2].at
    assert found[0].at.tzinfo is not None


async def test_pages_and_actors(conn):
    await audit_log.record(conn, *(entry(number, f"user:{number % 2}") for number in range(10)))
    first = await audit_log.read(conn, limit=4)
    second = await audit_log.read(conn, limit=4, before_id=first[-1].id)
    assert [each.subject for each in first + second] == [f"project:{number}" for number in range(9, 1, -1)]
    assert {each.actor for each in await audit_log.read(conn, actor="user:1")} == {"user:1"}
    assert await audit_log.read(conn, actor="user:none") == []


async def test_an_entry_goes_with_its_change(conn):
    transaction = conn.transaction()
    await transaction.start()
    await audit_log.record(conn, entry())
    await transaction.rollback()
    assert await audit_log.read(conn) == []


async def test_details_are_bounded_and_may_hold_any_text(conn):
    await audit_log.record(conn, entry(details={"text": "a\0b\\u0000"}), entry(details={"text": "x" * 300_000}))
    large, odd = await audit_log.read(conn)
    assert large.details == {"left_out_bytes": 300_011}
    assert odd.details["text"].startswith("a\ufffdb")
