"""Addresses and certificates: a row when they are seen for the first time, whatever way results arrive."""

from tests.writer.conftest import NOW_MS, S1, S2, flush, part, result

EXPIRES_S = NOW_MS // 1_000 + 30 * 86_400


def seen(second, address="192.0.2.1", expires_s=None, project_id=1, *, reused=False):
    return result(
        project_id,
        NOW_MS + 1_000 * second,
        connection_reused=reused,
        remote_address=address,
        certificate_expires_at_s=expires_s,
    )


async def add_projects(tables, count=1):
    await tables.conn.execute(
        "INSERT INTO projects (id, url) SELECT n, 'http://h/' FROM generate_series(1, $1::int) n", count
    )


async def found(tables):
    addresses = await tables.conn.fetch(
        "SELECT project_id, address, (extract(epoch FROM first_seen) * 1000)::bigint AS ms FROM project_addresses "
        "ORDER BY 1, 3"
    )
    certificates = await tables.conn.fetch(
        "SELECT project_id, extract(epoch FROM expires_at)::bigint AS s FROM project_certificates ORDER BY first_seen"
    )
    return (
        [(row[0], row[1], (row[2] - NOW_MS) // 1_000) for row in addresses],
        [(row[0], row[1] - EXPIRES_S) for row in certificates],
    )


async def test_a_row_for_each_that_is_new(store, tables):
    await add_projects(tables, 2)
    await store.commit(
        flush(part(1, [seen(0), seen(1, expires_s=EXPIRES_S), seen(2, "192.0.2.2"), seen(2, project_id=2)]))
    )
    await store.commit(flush(part(2, [seen(3, expires_s=EXPIRES_S), seen(4, "2001:db8::1", expires_s=EXPIRES_S + 1)])))
    assert await found(tables) == (
        [(1, "192.0.2.1", 0), (1, "192.0.2.2", 2), (1, "2001:db8::1", 4), (2, "192.0.2.1", 2)],
        [(1, 0), (1, 1)],
    )


async def test_polls_on_kept_connections_and_without_one_see_nothing(store, tables):
    await add_projects(tables)
    await store.commit(flush(part(1, [seen(0, reused=True, expires_s=EXPIRES_S), seen(1, None), seen(2, reused=None)])))
    assert await found(tables) == ([], [])


async def test_duplicates_and_another_database_change_nothing(store, tables):
    await add_projects(tables)
    await store.commit(flush(part(1, [seen(0, expires_s=EXPIRES_S)])))
    await store.commit(flush(part(1, [seen(0, expires_s=EXPIRES_S), seen(1)], stream=S2)))
    assert await found(tables) == ([(1, "192.0.2.1", 0)], [(1, 0)])
    await tables.conn.execute("DELETE FROM project_addresses")
    store.drop_connection()  # what it knew may be of another database
    await store.commit(flush(part(2, [seen(2)], stream=S1)))
    assert (await found(tables))[0] == [(1, "192.0.2.1", 2)]


async def test_what_a_transaction_that_failed_had_stored_is_stored_by_the_next(store, tables):
    await add_projects(tables)
    wrong = result(1, NOW_MS + 5_000, error_code="dns", error_message="\x00")
    outcome = await store.commit(flush(part(1, [seen(0), wrong])))
    assert outcome.rejects == 1
    assert (await found(tables))[0] == [(1, "192.0.2.1", 0)]


async def test_a_deleted_project_leaves_nothing(store, tables):
    await add_projects(tables)
    await store.commit(flush(part(1, [seen(0, expires_s=EXPIRES_S)])))
    await tables.conn.execute("DELETE FROM projects")
    assert await found(tables) == ([], [])
    await store.commit(flush(part(2, [seen(1, "192.0.2.9")])))
    assert await found(tables) == ([], [])
