"""The table of formats: how each is called, read and written.  Pure.

``own``: an entry is a project with all that it is, so what is wrong in one is an error.  ``matching``: how an entry
without an id finds the project that it is: ``none`` (it is always added), ``name``, or ``url``.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import msgspec

from cluster.interchange.csv_file import read_csv, write_csv
from cluster.interchange.gatus import read_gatus, write_gatus
from cluster.interchange.json_file import read_json, write_json
from cluster.interchange.jsonl_file import write_jsonl
from cluster.interchange.model import Exported, Imported
from cluster.interchange.prometheus import read_prometheus, write_prometheus
from cluster.interchange.toml_file import read_toml, write_toml
from cluster.interchange.uptime_kuma import read_uptime_kuma, write_uptime_kuma
from cluster.interchange.urls_file import read_urls, write_urls
from cluster.interchange.yaml_file import read_own_yaml, write_own_yaml

Matching = Literal["none", "name", "url"]
JSONL = "jsonl"  # the only one that is read as a stream


class InterchangeFormat(msgspec.Struct, frozen=True):
    """``read`` takes a text and the file's name for messages; None where reading needs more (see ``importing``)."""

    name: str
    what: str
    suffixes: tuple[str, ...]
    own: bool
    matching: Matching
    read: Callable[[str, str], Imported] | None
    write: Callable[[Iterable[Mapping[str, Any]]], Exported]


def _one_gatus_file(text: str, where: str) -> Imported:
    return read_gatus([(where, text)])


FORMATS = {
    each.name: each
    for each in (
        InterchangeFormat(JSONL, "JSON Lines, a project each", (".jsonl", ".ndjson"), True, "none", None, write_jsonl),
        InterchangeFormat("json", "a JSON list of projects", (".json",), True, "name", read_json, write_json),
        InterchangeFormat("toml", "a table [[projects]] each", (".toml",), True, "name", read_toml, write_toml),
        InterchangeFormat("yaml", "a list of projects", (".yaml", ".yml"), True, "name", read_own_yaml, write_own_yaml),
        InterchangeFormat("csv", "a row each", (".csv", ".tsv"), True, "name", read_csv, write_csv),
        InterchangeFormat(
            "gatus",
            "Gatus' config.yaml, or its directory",
            (".yaml", ".yml"),
            False,
            "name",
            _one_gatus_file,
            write_gatus,
        ),
        InterchangeFormat(
            "uptime-kuma", "its JSON backup", (".json",), False, "name", read_uptime_kuma, write_uptime_kuma
        ),
        InterchangeFormat(
            "prometheus",
            "prometheus.yml, or a file of targets",
            (".yaml", ".yml", ".json"),
            False,
            "name",
            read_prometheus,
            write_prometheus,
        ),
        InterchangeFormat("urls", "a URL a line", (".urls",), False, "url", read_urls, write_urls),
    )
}
