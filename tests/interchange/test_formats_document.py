"""FORMATS.md says of each field what the code does with it."""

import importlib
import re

import pytest

from cluster.interchange.csv_file import COLUMNS
from cluster.interchange.formats import FORMATS
from cluster.interchange.gatus_conditions import CONDITIONS
from tests.docs.repository_facts import read

DOCUMENT = read("cluster/interchange/FORMATS.md")
SECTIONS = {
    "urls_file": "## URLs",
    "gatus": "## Gatus",
    "uptime_kuma": "## Uptime Kuma",
    "prometheus": "## Prometheus",
    "blackbox": "## Prometheus",
}


def rows_of(section):
    text = DOCUMENT.partition(f"\n{section}")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(.+?)` \| (.+) \|$", text, flags=re.MULTILINE)
    return [(field, said) for field, said in rows]


@pytest.mark.parametrize(("module", "section"), SECTIONS.items())
def test_each_field_has_the_row_that_the_code_has(module, section):
    found = importlib.import_module(f"cluster.interchange.{module}")
    wanted = list(found.MAPPED.items())
    for reasons in (found.NOT_MAPPED, getattr(found, "FILE_NOT_MAPPED", {})):
        wanted += [(field, f"not mapped: {why}") for field, why in reasons.items()]
    if module == "gatus":
        wanted += list(CONDITIONS.items())
    rows = rows_of(section)
    missing = [row for row in wanted if row not in rows]
    assert not missing
    if module not in {"prometheus", "blackbox"}:  # they share a section
        assert sorted(rows) == sorted(wanted)


def test_each_column_and_each_format_is_named():
    assert [column for column in COLUMNS if f"`{column}`" not in DOCUMENT] == []
    assert [name for name in FORMATS if f"`{name}`" not in DOCUMENT] == []
    readme = read("README.md").partition("\n## Moving in and out\n")[2].partition("\n## ")[0]
    assert [name for name in FORMATS if f"`{name}`" not in readme] == []
