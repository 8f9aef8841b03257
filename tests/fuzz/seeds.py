"""Inputs to begin with, as files of a libFuzzer corpus."""

import itertools
import json

import xxhash

from tests.fuzz.strategies import BODIES, HEADERS, STATUS_LINES, URL_PARTS

CHOICES = b"\x00\x80\x20"


def write_seeds(what, corpus):
    for seed in {"response": _answers, "project": _projects}[what]():
        (corpus / f"seed-{xxhash.xxh3_64_hexdigest(seed)}").write_bytes(seed)


def _answers():
    for number, (status, body) in enumerate(itertools.product(STATUS_LINES, BODIES)):
        header = HEADERS[number % len(HEADERS)]
        for choice in (number % 9, 128 + number % 9):
            yield bytes([choice]) + CHOICES[1:] + status + b"\r\n" + header + b"\r\n\r\n" + body
    for header in HEADERS:
        yield CHOICES + STATUS_LINES[0] + b"\r\n" + header + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + BODIES[4]


def _projects():
    for part in URL_PARTS:
        yield json.dumps({"url": f"http://a.test{part}", "interval": "30s"}).encode()
        yield json.dumps({"url": part, "headers": {"Host": part, "X": "y"}, "timeout_ms": 5}).encode()
    for body, value in (("ok", "2"), ("ok", "3"), (None, "0"), ("é", " 2")):
        yield json.dumps({"url": "http://a.test", "body": body, "headers": {"Content-Length": value}}).encode()
    for status in ("200", "2xx", "200-299,301", "299-200", "1xx", "101"):
        row = {"url": "http://a.test/", "expected_status": status, "method": "POST", "interval": 5, "unit": "minutes"}
        yield json.dumps(row).encode()
