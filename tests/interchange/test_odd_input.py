"""Whatever stands where in another tool's file: a reader gives candidates or one line, and loses nothing."""

import contextlib
import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import InvalidInputError
from cluster.interchange.blackbox import read_blackbox
from cluster.interchange.csv_file import guarded, read_csv, unguarded
from cluster.interchange.detection import detected_format
from cluster.interchange.formats import FORMATS
from cluster.interchange.gatus import read_gatus
from cluster.interchange.gatus_conditions import read_condition
from cluster.interchange.prometheus import read_prometheus
from cluster.interchange.uptime_kuma import read_uptime_kuma
from cluster.interchange.urls_file import read_urls
from cluster.interchange.yaml_text import read_yaml, written_yaml
from cluster.project import project_from_map
from tests.interchange.accounting import accounted, unaccounted
from tests.interchange.test_gatus import CONFIG as GATUS
from tests.interchange.test_prometheus import BLACKBOX
from tests.interchange.test_prometheus import CONFIG as PROMETHEUS
from tests.interchange.test_uptime_kuma import BACKUP

ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 10**12), st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["", "0", "x", "-1", "on", "$", "${", "${X}", "[STATUS]", "1e9", "☃", "http://", "a b", "\t", "'"]),
    st.sampled_from([[], {}, [[]], [{}], {"a": {}}, ["x", 5, None], {"": ""}]),
)  # fmt: skip
READERS = {
    "gatus": (yaml.safe_load(GATUS), lambda text: read_gatus([("x", text)])),
    "uptime-kuma": (json.loads(BACKUP), lambda text: read_uptime_kuma(text, "x")),
    "prometheus": (yaml.safe_load(PROMETHEUS), lambda text: read_prometheus(text, "x", MODULES)),
}
MODULES = read_blackbox(BLACKBOX, "blackbox.yml")


def places(document, path=()):
    yield path
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in items:
        yield from places(value, (*path, key))


def changed(document, path, value):
    """A copy with another value in one place."""
    if not path:
        return value
    copy = dict(document) if isinstance(document, dict) else list(document)
    copy[path[0]] = changed(document[path[0]], path[1:], value)
    return copy


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=250)
@given(data=st.data())
def test_a_value_of_any_type_in_any_place(name, data):
    document, read = READERS[name]
    for _ in range(data.draw(st.integers(1, 3))):
        document = changed(document, data.draw(st.sampled_from(list(places(document)))), data.draw(ODD))
    text = json.dumps(document)
    try:
        found = accounted(read(text))
    except InvalidInputError:
        return
    for each in found:
        with contextlib.suppress(InvalidInputError):
            project_from_map(each.project or {})
    if name == "uptime-kuma" and isinstance(document, dict) and isinstance(document.get("monitorList"), list):
        for entry, candidate in zip(document["monitorList"], found, strict=True):
            assert not isinstance(entry, dict) or unaccounted(entry, candidate) == []
    if name == "gatus" and isinstance(document, dict) and isinstance(document.get("endpoints"), list):
        for entry, candidate in zip(document["endpoints"], found, strict=False):
            assert not isinstance(entry, dict) or unaccounted(entry, candidate, nested=("client",)) == []


MODULE_KEYS = st.sampled_from(
    ["prober", "http", "timeout", "headers", "tls_config", "basic_auth", "authorization", "valid_status_codes",
     "method", "fail_if_body_not_matches_regexp", "fail_if_header_not_matches", "body_size_limit"]
)  # fmt: skip


@settings(max_examples=150)
@given(module=st.recursive(ODD, lambda inner: st.dictionaries(MODULE_KEYS, inner), max_leaves=9))
def test_a_module_of_any_form(module):
    with contextlib.suppress(InvalidInputError):
        assert set(read_blackbox(json.dumps({"modules": {"m": {"prober": "http", "http": module}}}), "x")) == {"m"}


CONDITION_PARTS = st.sampled_from(
    ["[STATUS]", "[BODY]", "[BODY].a[0].b", "[BODY][*].x", "len([BODY].x)", "has([BODY])", "pat(*a[b-", "any(1,2)",
     "200", "[HEADER].X", "[RESPONSE_TIME]", "[CERTIFICATE_EXPIRATION]", "48h", "1.5", "-0x1F", "", "\\", "☃",
     "[", "((", "09"]
)  # fmt: skip


@given(left=CONDITION_PARTS, op=st.sampled_from(["==", "!=", "<", "<=", ">", ">=", "="]), right=CONDITION_PARTS)
def test_a_condition_is_read_or_refused(left, op, right):
    try:
        made = read_condition(f"{left} {op} {right}")
    except InvalidInputError:
        return
    assert (made.lost is None) or not made.assertions


@given(text=st.text(max_size=200))
def test_any_text_is_read_or_refused(text):
    for name, each in FORMATS.items():
        if each.read is None:
            continue
        with contextlib.suppress(InvalidInputError):
            found = accounted(each.read(text, "x"))
            assert name == "urls" or not any(candidate.skipped for candidate in found)


@given(raw=st.binary(max_size=300), name=st.sampled_from(["-", "a.json", "a.yaml", "a.txt", "a", "a.csv", "a.jsonl"]))
def test_the_format_of_anything_is_told_or_refused(raw, name):
    with contextlib.suppress(InvalidInputError):
        assert detected_format(name, raw) in FORMATS


TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(value=JSON_VALUES)
def test_what_is_written_as_yaml_is_read_as_it_was(value):
    assert read_yaml(written_yaml({"v": value}).decode(), "x") == {"v": value}


@given(text=st.text())
def test_a_guarded_cell_is_the_text_again(text):
    assert unguarded(guarded(text)) == text
    assert guarded(text)[:1] not in {"=", "+", "-", "@", "\t", "\r"}


def test_lists_of_urls():
    found = accounted(
        read_urls("# mine\n\nhttps://a.example/x#y\nb.example:8443/z  # later\nftp://c.example/\nHTTPS://A.example/\n"
                  "https://a.example/x#y\nhttps://u:p@d.example/\n", "x")
    )  # fmt: skip
    assert [(each.where, each.project and each.project["url"], each.skipped) for each in found] == [
        ("line 3", "https://a.example/x#y", None), ("line 4", "https://b.example:8443/z", None),
        ("line 5", None, "ringpoll polls http and https, not ftp"), ("line 6", "HTTPS://A.example/", None),
        ("line 7", None, "is also in line 3"), ("line 8", "https://u:p@d.example/", None),
    ]  # fmt: skip
    assert found[5].label == "https://u:***@d.example/"
    assert "no scheme" in found[1].notes[0].text


def test_a_list_of_urls_adds_what_is_not_polled_yet(table, tmp_path):
    table.sql("INSERT INTO projects (name, url, interval) VALUES ('a', 'https://a.example/', 5)")
    file = tmp_path / "list.txt"
    file.write_bytes("\ufeffhttps://a.example/\r\nexample.org\r\nftp://x.example/\r\n".encode())
    ran = table("projects", "import", file, "--format", "urls")
    assert ran.out == "added 1, updated 0, unchanged 1, skipped 1\n"
    assert "line 2: example.org: approximated: url: no scheme, taken as https://example.org" in ran.err
    assert table("projects", "import", file, "--format", "urls").out == "added 0, updated 0, unchanged 2, skipped 1\n"
    assert [row["interval"] for row in table.rows()] == [5, 60]
    assert table("projects", "export", "--format", "urls").out == "https://a.example/\nhttps://example.org\n"


# ---- which format ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.jsonl", "anything", "jsonl"), ("a.toml", "", "toml"), ("a.CSV", "", "csv"), ("a.urls", "", "urls"),
        ("-", '{"url": "http://a/"}\n{"url": "http://b/"}\n', "jsonl"), ("-", "", "jsonl"),
        ("-", '{"projects": [\n{"url": "http://a/"}]}', "json"), ("-", '[{"url": "http://a/"}]', "json"),
        ("-", '[[projects]]\nurl = "http://a/"', "toml"), ("-", "# mine\n[[projects]]\nurl = 'x'", "toml"),
        ("-", "url,name\nhttp://a/,b\n", "csv"), ("-", "name;url\n", "csv"), ("-", "# mine\nexample.org\n", "urls"),
        ("list.txt", "https://a.example/\n", "urls"), ("-", "projects:\n- url: http://a/\n", "yaml"),
        ("a.yml", "- url: http://a/\n", "yaml"), ("a.yml", "- {name: b, url: http://a/}\n", "yaml"),
        ("a.yml", "endpoints:\n- name: a\n", "gatus"), ("a.yaml", "---\n'endpoints':\n", "gatus"),
        ("a.yml", "scrape_configs: []\n", "prometheus"), ("a.yml", "- targets: [a]\n", "prometheus"),
        ("a.json", '[{"targets": ["a"], "labels": {"url": "x"}}]', "prometheus"), ("a.json", "[]", "json"),
        ("a.json", '{"monitorList": []}', "uptime-kuma"), ("a.json", '{"url": "http://a/"}\n{"url": "b"}', "jsonl"),
        ("-", '{"version": "1.23",\n "monitorList": []}', "uptime-kuma"), ("a.yml", "{projects: []}", "yaml"),
        ("a.json", '[{"url": "x", "type": "http", "maxretries": 0}]', "uptime-kuma"),
        ("a.json", '{"url": "x"}', "json"),
        ("-", '{"monitorList": []}', "uptime-kuma"), ("a.json", '{"projects": [}', "json"),
    ],
)  # fmt: skip
def test_the_format_is_found_out(name, text, expected):
    assert detected_format(name, text.encode()) == expected


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("a.yml", "endpoints: []\nscrape_configs: []\n", "it has endpoints, scrape_configs"),
        ("a.yml", "a: 1\n", "its keys are a"), ("a.yml", "", "it is empty"), ("a.yml", "text\n", "neither a map"),
        ("a.yml", "modules: {}\n", "--blackbox"), ("a.json", "5", "neither a list nor a map"),
        ("a.json", '[{"a": 1}]', "its entries have a"), ("-", "some words here\n", "neither JSON"),
        ("-", "\x00\x01", "neither JSON"),
    ],
)  # fmt: skip
def test_what_can_not_be_told_is_refused_with_what_to_do(name, text, why):
    with pytest.raises(InvalidInputError) as caught:
        detected_format(name, text.encode())
    assert why in str(caught.value)
    assert "--format" in str(caught.value) or "--blackbox" in str(caught.value)


def test_standard_input_is_read(table, tmp_path, monkeypatch):
    file = tmp_path / "x"
    file.write_text("url,name\nhttp://a/,b\n")
    with file.open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        assert table("projects", "import", "-").out == "added 1, updated 0\n"


def test_a_table_of_csv_has_no_more_cells_than_columns():
    (found,) = accounted(read_csv("url\nhttp://a/,b\n", "x"))
    assert found.wrong == "has 2 cells for 1 columns"
