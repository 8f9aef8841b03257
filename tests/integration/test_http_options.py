"""HTTP options, from a row written in SQL to the bytes that reach the endpoint."""

import asyncio
import ssl
import threading

import pytest
import trustme

from tests.integration.harness import wait_until


class SecureTarget:
    """Keeps the head of each request, and the number of its connection; its certificate is for api.test only."""

    def __init__(self, authority):
        self.requests = []
        self.port = 0
        self._connections = 0
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("api.test").configure_cert(self._tls)
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_exception):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    async def _serve(self):
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0, ssl=self._tls)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
            await asyncio.wait({task})

    async def _answer(self, reader, writer):
        self._connections += 1
        number = self._connections
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.requests.append((number, head.decode()))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            writer.close()


@pytest.fixture
def authority():
    return trustme.CA()


@pytest.fixture
def secure_target(authority):
    with SecureTarget(authority) as running:
        yield running


def test_options_written_in_sql_are_those_of_the_next_poll(make_cluster, sql, authority, secure_target, tmp_path):
    cluster = make_cluster(workers=1)
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    project = sql.value(
        "INSERT INTO projects (url, interval, ca_file, server_name, connection_reuse, body_limit_bytes, user_agent,"
        " bearer_token, ip_version, connect_timeout_ms)"
        " VALUES ($1, 1, $2, 'api.test', 'never', 3, 'Probe/1', 'token', 4, 5000) RETURNING id",
        f"https://127.0.0.1:{secure_target.port}/x",
        str(ca_file),
    )
    newest = (
        "SELECT status::text, error_code, size_bytes, connection_reused FROM poll_results WHERE project_id = $1"
        " ORDER BY scheduled_at DESC LIMIT 1"
    )

    def result():
        return tuple(next(iter(sql.fetch(newest, project)), ()))

    wait_until(lambda: len(secure_target.requests) >= 3 and result() == ("success", None, 3, False), "polls", 20)
    numbers = [number for number, _ in secure_target.requests]
    assert len(set(numbers)) == len(numbers)
    lines = secure_target.requests[0][1].split("\r\n")
    assert {"Authorization: Bearer token", "User-Agent: Probe/1", "Connection: close"} <= set(lines)

    sql.execute("UPDATE projects SET server_name = NULL WHERE id = $1", project)
    wait_until(lambda: result()[:2] == ("failure", "tls_verify"), "the certificate is for another name", 20)
    sql.execute("UPDATE projects SET ca_file = NULL, verify_tls = false WHERE id = $1", project)
    wait_until(lambda: result()[:3] == ("success", None, 3), "nothing is verified", 20)
    sql.execute("UPDATE projects SET body_limit_bytes = NULL, connection_reuse = 'auto' WHERE id = $1", project)
    wait_until(lambda: result() == ("success", None, 5, True), "the defaults again", 20)
    cluster.stop_cleanly()
