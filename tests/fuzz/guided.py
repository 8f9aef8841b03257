"""Fuzzing guided by coverage: ``python -m tests.fuzz.guided response|project CORPUS [libFuzzer options]``.

It needs atheris.  The engines and the validation are instrumented; libFuzzer's own options say for how long.
"""

import sys

import atheris

with atheris.instrument_imports(include=["worker.probe", "cluster.project", "aiohttp.streams", "aiohttp.client_proto"]):
    from tests.fuzz.answers import Script, Stage
    from tests.fuzz.projects import check_row, check_written

import msgspec
import orjson

from cluster.project import ProjectSpec
from tests.fuzz.strategies import NAMES, URL_PARTS, VALUES

TEXTS = ("method", "expected_status")


class Responses:
    def __init__(self):
        self._stage = Stage()

    def __call__(self, data):
        self._stage.play(Script.of_bytes(data))


def project_input(data):
    """JSON or MessagePack as it is written, or bytes that choose fields; a map is looked at as a row, too."""
    for decode in (orjson.loads, msgspec.json.decode, msgspec.msgpack.decode):
        try:
            written = decode(data)
        except (ValueError, msgspec.DecodeError):
            continue
        if isinstance(written, dict):
            check_written(written)
            _check_row_of(written)
            return
    written = _chosen(atheris.FuzzedDataProvider(data))
    check_written(written)
    _check_row_of(written)


def _chosen(source):
    """A map of fields whose texts are put together from pieces that matter and from whatever is left."""

    def text(pieces):
        count = source.ConsumeIntInRange(0, 4)
        return "".join(
            source.PickValueInList(pieces) if source.ConsumeBool() else source.ConsumeUnicode(6) for _ in range(count)
        )

    written = {"url": "http://" * source.ConsumeBool() + text(list(URL_PARTS))}
    if source.ConsumeBool():
        written["headers"] = {text(list(NAMES)): text(list(VALUES)) for _ in range(source.ConsumeIntInRange(0, 3))}
    if source.ConsumeBool():
        written["method"] = text(["GET", "post", "CONNECT", "X"])
    if source.ConsumeBool():
        written["expected_status"] = text(["200", "2xx", "-", ",", "101", " "])
    if source.ConsumeBool():
        written["interval"] = source.ConsumeInt(8) if source.ConsumeBool() else text(["30", "s", "m", " ", "days"])
    if source.ConsumeBool():
        written["timeout_ms"] = source.ConsumeInt(5)
    if source.ConsumeBool():
        written["body"] = text(["ok", "\r\n\r\n", "\ud800"])
    return written


def _check_row_of(written):
    """The fields as a row of the table would have them, as far as their types go."""
    if not isinstance(written.get("url"), str):
        return
    named = {name: written[name] for name in TEXTS if isinstance(written.get(name), str)}
    headers = written.get("headers")
    if isinstance(headers, dict):
        pairs = tuple(
            (name, value) for name, value in headers.items() if isinstance(name, str) and isinstance(value, str)
        )
        named["headers"] = pairs
    if isinstance(written.get("body"), str):
        named["body"] = written["body"]
    if not any("\x00" in text for text in (written["url"], *named.values()) if isinstance(text, str)):
        check_row(ProjectSpec(1, written["url"], 1_000, 0, **named))


def main():
    what, *options = sys.argv[1:]
    atheris.Setup([sys.argv[0], *options], {"response": Responses, "project": lambda: project_input}[what]())
    atheris.Fuzz()


if __name__ == "__main__":
    main()
