"""The admin socket for programs: bare ZeroMQ clients with JSON, what they change, and how they are refused."""

import json
import time

import msgspec
import pytest
import zmq

from tests.integration.harness import check_books, one_line_error, wait_until


@pytest.fixture
def cluster(make_cluster):
    return make_cluster(workers=2)


def test_projects_are_added_removed_and_reloaded(cluster, sql, target):
    asked_at = time.time()
    reply = cluster.ask({"type": "add", "project": {"url": target.url("/ok/one"), "interval": "1s", "name": "one"}})
    assert reply["type"] == "ok"
    one = reply["id"]
    wait_until(lambda: target.count("one") >= 1, "the immediate poll", 5)
    assert target.arrivals["one"][0] - asked_at <= 1.0 + target.stall_s(asked_at)
    wait_until(lambda: target.count("one") >= 3, "its ticks", 8)

    row = sql.value(
        "INSERT INTO projects (url, interval, enabled) VALUES ($1, 1, false) RETURNING id", target.url("/ok/two")
    )
    assert cluster.ask({"type": "add", "id": row}) == {"type": "ok", "id": row}
    wait_until(lambda: target.count("two") >= 2, "polls of a row that was there", 8)

    # Not one more request after the reply.
    assert cluster.ask({"type": "remove", "ids": [one]})["type"] == "ok"
    count, counted_at = target.count("one"), time.time()
    wait_until(lambda: len(target.since("two", counted_at)) >= 3, "three more seconds of polling", 10)
    assert target.count("one") == count
    assert sql.value("SELECT enabled FROM projects WHERE id = $1", one) is False

    assert cluster.ask({"type": "reload"}) == {"type": "ok", "added": 0, "changed": 0, "removed": 0}
    assert cluster.ask({"type": "remove", "ids": [row], "delete": True})["type"] == "ok"
    assert sql.value("SELECT count(*) FROM projects WHERE id = $1", row) == 0
    assert sql.value("SELECT count(*) FROM poll_results WHERE project_id = $1", row) > 0, "its results stay"
    wait_until(lambda: cluster.status()["active_projects"] == 0, "no active project", 5)
    cluster.stop_cleanly()
    check_books(cluster, sql, target, {"one": one, "two": row})


def test_what_cannot_be_done_is_refused_and_changes_nothing(cluster, sql, target):
    known = cluster.ask({"type": "add", "project": {"url": target.url("/ok/known"), "interval": "1s"}})["id"]
    before = [dict(row) for row in sql.fetch("SELECT * FROM projects ORDER BY id")]
    url = target.url("/ok/bad")
    for message, code in [
        ({"type": "remove", "ids": [known, 987_654]}, "unknown_project"),
        ({"type": "add", "id": 987_654}, "unknown_project"),
        ({"type": "remove", "ids": []}, "invalid_request"),
        ({"type": "remove"}, "invalid_request"),
        ({"type": "add"}, "invalid_request"),
        ({"type": "add", "project": {"url": "ftp://example.org/"}}, "invalid_request"),
        ({"type": "add", "project": {"url": "nonsense"}}, "invalid_request"),
        ({"type": "add", "project": {"url": url, "interval": "0s"}}, "invalid_request"),
        ({"type": "add", "project": {"url": url, "interval": 5, "unit": "fortnights"}}, "invalid_request"),
        ({"type": "add", "project": {"url": url, "expected_status": "6xx"}}, "invalid_request"),
        ({"type": "add", "project": {"url": url, "method": "GE T"}}, "invalid_request"),
        ({"type": "add", "project": {"url": url, "headers": {"a\nb": "c"}}}, "invalid_request"),
        ({"type": "add", "project": {"url": url, "colour": "red"}}, "invalid_request"),
        ({"type": "scale"}, "invalid_request"),
        ({"type": "scale", "workers": 0}, "invalid_request"),
        ({"type": "scale", "max_concurrent_http": "many"}, "invalid_request"),
        ({"type": "drain", "worker": "worker-77"}, "unknown_worker"),
        ({"type": "dance"}, "unknown_type"),
        ({}, "unknown_type"),
        ([1, 2], "malformed"),
    ]:
        reply = cluster.ask(message)
        assert (reply["type"], reply.get("code")) == ("error", code), (message, reply)
        assert reply["message"] == " ".join(reply["message"].split()) != ""
    for args, exit_status in [
        (["add", "ftp://example.org"], 2),
        (["add", "http://example.org", "--header", "no colon"], 2),
        (["remove", str(known), "987654"], 1),
        (["drain", "worker-9"], 1),
    ]:
        one_line_error(cluster.cli(*args), exit_status)
    assert [dict(row) for row in sql.fetch("SELECT * FROM projects ORDER BY id")] == before
    counted_at = time.time()
    wait_until(lambda: len(target.since("known", counted_at)) >= 2, "the known project goes on", 8)


def test_each_frame_is_answered_in_the_encoding_and_envelope_it_used(cluster):
    for body, code in [
        (b"\xc1", "malformed"),
        (b"nonsense", "malformed"),
        (b"", "malformed"),
        (b'{"type": "status"', "malformed"),
        (b'{"type": 5}', "unknown_type"),
        (b'{"type": "status", "verbose": true}', "invalid_request"),
        (msgspec.msgpack.encode({"type": "add"}), "invalid_request"),
    ]:
        with zmq.Context() as context, context.socket(zmq.REQ) as client:
            client.setsockopt(zmq.LINGER, 0)
            client.connect(cluster.admin_endpoint())
            client.send(body)
            assert client.poll(10_000), body
            answer = client.recv()
        reply = msgspec.msgpack.decode(answer) if body[:1] >= b"\x80" else json.loads(answer)
        assert (reply["type"], reply["code"]) == ("error", code), body
        assert reply["message"]

    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(cluster.admin_endpoint())
        body = json.dumps({"type": "status"}).encode()
        for envelope in ([], [b""], [b"request-7", b""]):
            dealer.send_multipart([*envelope, body])
            assert dealer.poll(10_000), envelope
            *answered, reply = dealer.recv_multipart()
            assert answered == envelope
            document = json.loads(reply)["status"]
            assert {each["name"] for each in document["workers"]} == {"worker-1", "worker-2"}
        served = cluster.status()
        assert served.keys() == document.keys(), "GET /status is the same document"
    shown = cluster.cli("status", "--json")
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout).keys() == document.keys()


def test_a_drained_worker_leaves_and_loses_nothing(cluster, sql, target):
    tags = sql.insert_projects(target, 60)
    wait_until(lambda: min(target.counts(tags).values()) >= 2, "polls of every project")
    assert cluster.ask({"type": "drain", "worker": "worker-1"})["type"] == "ok"
    wait_until(lambda: [each["name"] for each in cluster.status()["workers"]] == ["worker-2"], "worker-1 to leave")
    refused = cluster.ask({"type": "drain", "worker": "worker-2"})
    assert (refused["type"], refused.get("code")) == ("error", "last_worker")
    since = time.time()
    wait_until(lambda: all(len(target.since(tag, since)) >= 2 for tag in tags), "polls by the other worker")
    cluster.stop_cleanly()
    check_books(cluster, sql, target, tags)
    assert sql.missed().get("handover", 0) == 0
