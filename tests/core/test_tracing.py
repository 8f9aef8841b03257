"""Traces: what reaches an OTLP receiver, what happens without one, and without the extra."""

import asyncio
import gzip
import logging
import subprocess
import sys
import time

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from cluster import otlp
from cluster.otlp import OtlpTracing, endpoint_of
from cluster.settings import Settings
from cluster.tracing import open_tracing
from tests.coordinator_shell.test_http_server import free_port
from tests.coordinator_shell.waiting import until


class Receiver:
    """An OTLP/HTTP receiver; ``spans`` as they come, with the resource's attributes under ``resource``."""

    def __init__(self):
        self.url = f"http://127.0.0.1:{free_port()}"
        self.spans = []
        self.status = 200
        self.held = None  # an event that answers wait for
        self.requests = 0
        self.runner = None

    async def start(self):
        app = web.Application()
        app.router.add_post("/v1/traces", self.take)
        self.runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", int(self.url.rpartition(":")[2])).start()

    async def take(self, request):
        self.requests += 1
        body = await request.read()
        if request.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if self.held is not None:
            await self.held.wait()
        if self.status == 200:
            message = ExportTraceServiceRequest.FromString(body)
            for each in message.resource_spans:
                resource = attributes_of(each.resource)
                for scope in each.scope_spans:
                    self.spans += [(resource, span) for span in scope.spans]
        return web.Response(status=self.status, content_type="application/x-protobuf")

    def named(self, name):
        return [span for _, span in self.spans if span.name == name]


def attributes_of(holder):
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in holder.attributes}


@pytest.fixture
async def receiver():
    made = Receiver()
    await made.start()
    yield made
    if made.held is not None:
        made.held.set()
    await made.runner.cleanup()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(otlp, "EXPORT_EVERY_S", 0.02)
    yield
    library = logging.getLogger("opentelemetry")
    library.propagate, library.handlers = True, []


async def test_a_span_arrives_with_its_times_attributes_and_events(receiver):
    tracing = OtlpTracing(receiver.url, "worker", "worker-3")
    events = (("dns", 1_500, {"duration_ms": 0.5, "left_out": None}),)
    tracing.record("poll", 1_000, 2_000, {"a": 1, "b": "x", "none": None}, kind="client", error="dns", events=events)
    tracing.record("poll", 1_000, 2_000, {"long": "x" * 5_000})
    await until(lambda: len(receiver.spans) == 2)
    resource, span = receiver.spans[0]
    expected = {"service.name": "ringpoll", "service.instance.id": "worker-3", "ringpoll.role": "worker"}
    assert expected.items() <= resource.items()
    assert (span.name, span.start_time_unix_nano, span.end_time_unix_nano) == ("poll", 1_000, 2_000)
    assert attributes_of(span) == {"a": 1, "b": "x"}
    assert (span.kind, span.status.code, span.status.message) == (3, 2, "dns")
    (event,) = span.events
    assert (event.name, event.time_unix_nano, attributes_of(event)) == ("dns", 1_500, {"duration_ms": 0.5})
    assert len(attributes_of(receiver.spans[1][1])["long"]) == otlp.ATTRIBUTE_CHARS_MAX
    assert receiver.spans[0][1].trace_id != receiver.spans[1][1].trace_id, "each is a trace of its own"
    assert tracing.dropped == 0
    await tracing.close()


@pytest.mark.parametrize(
    ("traceparent", "joins"),
    [("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", True), ("00-" + "z" * 5_000, False), ("", False)],
)
async def test_a_span_of_a_request_joins_the_trace_of_its_client(receiver, traceparent, joins):
    tracing = OtlpTracing(receiver.url, "coordinator", "coordinator")
    tracing.record("GET /", 1, 2, {}, kind="server", headers={"traceparent": traceparent, "cookie": "secret"})
    await until(lambda: receiver.spans)
    (span,) = receiver.named("GET /")
    assert (span.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c") == joins
    assert span.parent_span_id.hex() == ("b7ad6b7169203331" if joins else "")
    await tracing.close()


async def test_what_is_queued_is_delivered_at_the_close(receiver, monkeypatch):
    monkeypatch.setattr(otlp, "EXPORT_EVERY_S", 3_600.0)
    tracing = OtlpTracing(receiver.url, "writer", "writer")
    for _ in range(10):
        tracing.record("writer.flush", 1, 2, {})
    await tracing.close()
    assert len(receiver.spans) == 10
    assert tracing.dropped == 0


async def test_the_queue_is_bounded_and_nobody_waits_for_a_receiver_that_hangs(receiver, monkeypatch):
    monkeypatch.setattr(otlp, "QUEUE_SPANS", 50)
    monkeypatch.setattr(otlp, "BATCH_SPANS", 10)
    monkeypatch.setattr(otlp, "CLOSE_S", 0.1)
    receiver.held = asyncio.Event()
    tracing = OtlpTracing(receiver.url, "worker", "worker-1")
    for _ in range(10):
        tracing.record("poll", 1, 2, {})
    await until(lambda: receiver.requests == 1)
    began_s = time.perf_counter()
    for _ in range(1_000):
        tracing.record("poll", 1, 2, {})
    took_s = time.perf_counter() - began_s
    assert tracing.dropped >= 1_000 - 50 - 10
    assert took_s < 1.0, "recording does not wait"
    await asyncio.wait_for(tracing.close(), 5)


async def test_spans_that_are_not_taken_are_counted_and_said_once(receiver, caplog, monkeypatch):
    receiver.status = 400
    tracing = OtlpTracing(receiver.url.replace("://", "://ann:secret@"), "worker", "worker-1")
    for expected in (1, 2, 3):
        tracing.record("poll", 1, 2, {})
        await until(lambda expected=expected: tracing.dropped == expected)
    (line,) = [each.getMessage() for each in caplog.records]
    assert line.startswith(f"spans can't be delivered to {receiver.url} (1 dropped so far): ")
    assert "400" in line
    assert "secret" not in line
    receiver.status = 200
    tracing.record("poll", 1, 2, {})
    await until(lambda: receiver.spans)
    await tracing.close()


async def test_without_a_receiver_spans_are_dropped_and_counted(caplog, monkeypatch):
    monkeypatch.setattr(otlp, "EXPORT_TIMEOUT_S", 0.2)
    tracing = OtlpTracing(f"http://127.0.0.1:{free_port()}", "worker", "worker-1")
    tracing.record("poll", 1, 2, {})
    await until(lambda: tracing.dropped == 1)
    assert "spans can't be delivered to" in caplog.text
    await tracing.close()


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("http://a:4318", "http://a:4318/v1/traces"),
        ("http://a:4318/", "http://a:4318/v1/traces"),
        ("https://a/otlp/v1/traces", "https://a/otlp/v1/traces"),
    ],
)
def test_where_traces_go(url, endpoint):
    assert endpoint_of(url) == endpoint


def test_without_the_option_there_is_nothing(tmp_path):
    assert open_tracing(Settings(data_dir=tmp_path), "worker") is None


@pytest.mark.parametrize(
    ("role", "supervised", "lines"), [("coordinator", True, 1), ("worker", True, 0), ("worker", False, 1)]
)
def test_without_the_extra_it_is_one_line_of_the_cluster(tmp_path, monkeypatch, caplog, role, supervised, lines):
    monkeypatch.setitem(sys.modules, "cluster.otlp", None)  # as where the library is missing
    settings = Settings(data_dir=tmp_path, traces_url="http://127.0.0.1:4318", supervised=supervised)
    assert open_tracing(settings, role) is None
    said = [each.getMessage() for each in caplog.records]
    assert len(said) == lines
    assert all("install ringpoll[otel]" in each for each in said)


@pytest.mark.parametrize("role", ["coordinator", "worker", "writer"])
def test_a_role_that_traces_nothing_does_not_import_the_library(role):
    code = f"import sys, {role}.service; sys.exit('opentelemetry' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
