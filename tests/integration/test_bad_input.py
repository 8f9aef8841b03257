"""What can't work is refused in one line with the right exit status, and rubbish on any socket disturbs nobody."""

import re
import socket
import time
from urllib.parse import urlsplit

import msgspec
import pytest
import zmq

from cluster.messages import control, results
from tests.integration.harness import (
    INTERVAL_S,
    JITTER_S,
    check_books,
    free_port,
    one_line_error,
    polled_again,
    run_cli,
    wait_until,
    widest,
)

OVERSIZED = 9 << 20
RUBBISH = [
    b"",
    b"\x00",
    b"\xc1",  # never used in msgpack
    b"\xff" * 1_000,
    b"{}",
    b'{"type": "hello"',
    b"[" * 100_000,
    b"\x91" * 100_000,  # nested msgpack arrays
    b"\xdf\xff\xff\xff\xff",  # a map of four billion entries
    b"\xdd\xff\xff\xff\xff",  # an array of as many
    msgspec.msgpack.encode({"type": "dance"}),
    msgspec.msgpack.encode({"type": "hello"}),
    msgspec.msgpack.encode({"type": "heartbeat", "incarnation": 7}),
    msgspec.msgpack.encode([1, 2, 3]),
    msgspec.msgpack.encode(["batch", "no-such-stream", 1, [], []]),
    msgspec.msgpack.encode(["batch", "x" * 100_000, -1, [[1]], [[2]]]),
    control.encode(control.Ack(2**62, 2**62)),
    control.encode(control.SliceReached(1, 1, 10**9)),
    control.encode(control.Released(1, [control.Cut(99_999, 1, None)])),
    results.encode(results.StreamHello("not-a-uuid", "worker-1", "x", 1)),
    results.encode(results.StreamEnd("not-a-uuid")),
]


def up(data_dir, *options, database_url=None):
    """``cluster up`` that is expected to end by itself."""
    where = ["--database-url", database_url] if database_url else []
    return run_cli("up", "--data-dir", str(data_dir), "--http", f"127.0.0.1:{free_port()}", *where, *options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--workers", "0"], "--workers"),
        (["--http", "127.0.0.1:99999"], "--http"),
        (["--database-url", "mysql://localhost/x"], "--database-url"),
        (["--config", "/no/such/file.toml"], "/no/such/file.toml"),
    ],
)
def test_a_bad_option_is_named_and_nothing_starts(data_dir, options, says):
    done = run_cli("up", "--data-dir", str(data_dir), *options)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert says in done.stderr.strip().splitlines()[-1]
    assert not data_dir.exists()


def test_an_unreachable_database_is_one_line(data_dir):
    url = f"postgresql://someone:secret@127.0.0.1:{free_port()}/nothing"
    line = one_line_error(up(data_dir, database_url=url), 1)
    assert "127.0.0.1" in line
    assert "secret" not in line
    assert not list((data_dir / "run").iterdir())


def test_a_second_cluster_is_refused_and_the_first_undisturbed(make_cluster, sql, target, data_dir, database_url):
    cluster = make_cluster(workers=2)
    tags = sql.insert_projects(target, 40)
    polled_again(target, tags, 0, 2)
    pids = {each["pid"] for each in cluster.status()["workers"]}
    line = one_line_error(up(data_dir, database_url=database_url), 1)
    assert str(data_dir) in line
    assert str(cluster.process.pid) in line

    elsewhere = data_dir.parent / "e"
    done = run_cli("up", "--data-dir", str(elsewhere), "--http", cluster.http, "--database-url", database_url)
    line = one_line_error(done, 1)
    assert cluster.http in line
    assert not list((elsewhere / "run").iterdir())

    assert {each["pid"] for each in cluster.status()["workers"]} == pids
    assert cluster.ask({"type": "status"})["type"] == "ok"
    polled_again(target, tags, time.time(), 2)
    cluster.stop_cleanly()
    check_books(cluster, sql, target, tags)


def unix_garbage(path):
    """What isn't ZeroMQ at all, straight into the socket file."""
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(2)
        raw.connect(str(path))
        raw.sendall(b"GET / HTTP/1.1\r\n\r\n" + bytes(range(256)) * 64)


def send_rubbish(cluster):
    """Every socket gets everything; returns when ZeroMQ has taken it."""
    with zmq.Context() as context:
        for name in ("control", "results", "admin"):
            endpoint = f"ipc://{cluster.data_dir}/run/{name}.sock"
            with context.socket(zmq.DEALER) as dealer:
                dealer.setsockopt(zmq.LINGER, 2_000)
                dealer.connect(endpoint)
                for body in RUBBISH:
                    dealer.send(body)
                    dealer.send_multipart([b"", body])
                    dealer.send_multipart([body, b"", body, b""])
                dealer.send_multipart([b"x"] * 500)
            with context.socket(zmq.DEALER) as dealer:
                dealer.setsockopt(zmq.LINGER, 0)
                dealer.connect(endpoint)
                dealer.send(bytes(OVERSIZED))
                dealer.poll(300)  # it is cut off by now, or never answered
            for _ in range(3):
                unix_garbage(cluster.data_dir / "run" / f"{name}.sock")


def send_http_rubbish(cluster):
    """Answers to what isn't HTTP, or asks for what isn't there."""
    answers = []
    for request in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),  # TLS
        b"NONSENSE\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 10_000 + b"\r\n",
        b"POST /status HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
        b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /sta",
    ):
        with socket.create_connection(("127.0.0.1", cluster.port), timeout=5) as raw:
            try:
                raw.sendall(request)
                raw.shutdown(socket.SHUT_WR)
                answers.append(raw.recv(65_536))
            except ConnectionError:
                answers.append(b"")
    return answers


def test_rubbish_on_every_socket_disturbs_nobody(make_cluster, sql, target):
    cluster = make_cluster(workers=2)
    tags = sql.insert_projects(target, 80)
    polled_again(target, tags, 0, 3)
    before = cluster.status()

    since = time.time()
    send_rubbish(cluster)
    answers = send_http_rubbish(cluster)
    polled_again(target, tags, time.time(), 3)
    until = time.time()
    assert widest(target, tags, since - 1, until)[0] <= INTERVAL_S + JITTER_S + target.stall_s(since, until)
    assert not [answer for answer in answers if answer.startswith(b"HTTP/1.1 2")]
    assert not [answer for answer in answers if answer and not re.match(rb"HTTP/1\.[01] 4\d\d ", answer)]

    after = cluster.status()
    assert {each["name"]: each["pid"] for each in after["workers"]} == {
        each["name"]: each["pid"] for each in before["workers"]
    }
    assert after["writer"]["pid"] == before["writer"]["pid"]
    assert after["active_projects"] == 80
    assert after["refused"]["control_malformed"] >= 10
    assert after["refused"]["admin_refused"] >= 10
    assert cluster.get("/readyz")[0] == 200
    assert cluster.ask({"type": "status"})["type"] == "ok"
    cluster.stop_cleanly()
    check_books(cluster, sql, target, tags)
    log = cluster.log_file.read_text()
    assert "Traceback" not in log
    assert len(log.splitlines()) < 400, "a flood of rubbish is not a flood of lines"


def test_the_clusters_own_endpoints_are_not_polled(make_cluster, sql, target, database_url):
    """Nor is what clouds give out credentials at; other ports on loopback are."""
    cluster = make_cluster(workers=1)
    urls = [cluster.http, f"[::ffff:127.0.0.1]:{cluster.port}", f"localhost:{cluster.port}", f"0.0.0.0:{cluster.port}"]
    if (host := urlsplit(database_url).hostname) is not None:
        urls.append(f"{host}:{urlsplit(database_url).port or 5432}")
    refused = [
        sql.value("INSERT INTO projects (url) VALUES ($1) RETURNING id", f"http://{each}/status")
        for each in [*urls, "169.254.169.254"]
    ]
    polled = sql.value("INSERT INTO projects (url) VALUES ($1) RETURNING id", target.url("/ok/beside"))
    found = wait_until(
        lambda: (
            len(rows := sql.fetch("SELECT project_id, status::text, error_code, error_message FROM poll_results"))
            > len(refused)
            and rows
        ),
        "a result of each",
    )
    assert {row["project_id"]: row["error_code"] for row in found} == {
        **dict.fromkeys(refused, "blocked"),
        polled: None,
    }
    assert {row["status"] for row in found} == {"failure", "success"}
    assert all("is not polled" in row["error_message"] for row in found if row["error_code"])
    cluster.stop_cleanly()


def test_private_addresses_are_not_polled_unless_that_is_allowed(make_cluster, sql, target):
    cluster = make_cluster(workers=1, options=["--no-allow-private"])
    sql.execute("INSERT INTO projects (url) VALUES ($1)", target.url("/ok/inside"))
    row = wait_until(lambda: sql.fetch("SELECT error_code, error_message FROM poll_results"), "a result")[0]
    assert row["error_code"] == "blocked"
    assert "a loopback address (127.0.0.0/8), which is not polled without --allow-private" in row["error_message"]
    cluster.stop_cleanly()
