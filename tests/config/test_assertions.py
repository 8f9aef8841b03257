"""What may be asserted of an answer, as JSON and as lines, and what is refused."""

import json
import subprocess
import sys

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cluster import assertions
from cluster.assertions import (
    ASSERTIONS_MAX,
    BodyContains,
    BodyMatches,
    CertificateDays,
    HeaderIs,
    JsonPathIs,
    ResponseTimeBelow,
    StatusIn,
    assertion_line,
    canonical_assertions,
    decode_assertions,
    encode_assertions,
    parse_assertion,
    validate_assertions,
)
from cluster.errors import InvalidInputError
from cluster.project import ProjectSpec, compact, decode_spec, encode_spec, project_from_map, spec_from_row

URL = "http://127.0.0.1/"
OK = {"type": "body_contains", "text": "ok"}

LINES = [
    ("status 2xx", StatusIn("2xx")),
    (" status  200 - 299 , 3XX ", StatusIn("200-299,3xx")),
    ("body contains ok", BodyContains("ok")),
    ("body contains  it is up ", BodyContains("it is up")),
    ('body contains " ok"', BodyContains(" ok")),
    ('body contains "a": 1', BodyContains('"a": 1')),
    ("body contains a\nb", BodyContains("a\nb")),
    ("body matches ^v[0-9]+ ok$", BodyMatches("^v[0-9]+ ok$")),
    ("json $.a", JsonPathIs("$.a")),
    ("json $.a exists", JsonPathIs("$.a", "exists")),
    ("json $.a absent", JsonPathIs("$.a", "absent")),
    ('json $.a == "b c"', JsonPathIs("$.a", "==", "b c")),
    ("json $['a == b'].c != null", JsonPathIs("$['a == b'].c", "!=", None)),
    ('json $["it\'s \\"so\\" ]"] == 1', JsonPathIs('$["it\'s \\"so\\" ]"]', "==", 1)),
    ("json $.a[?@.b == 'x' && (@.c > 1)].d <= 2.5", JsonPathIs("$.a[?@.b == 'x' && (@.c > 1)].d", "<=", 2.5)),
    ('json $ == {"a": [1, true]}', JsonPathIs("$", "==", {"a": [1, True]})),
    ("json $.v matches ^2[.]", JsonPathIs("$.v", "matches", "^2[.]")),
    ("header Content-Type matches ^text/", HeaderIs("content-type", "matches", "^text/")),
    ("header Server: == nginx 1.2", HeaderIs("server", "==", "nginx 1.2")),
    ('header X-Empty == ""', HeaderIs("x-empty", "==", "")),
    ("header cache-control contains no-store", HeaderIs("cache-control", "contains", "no-store")),
    ("time < 500ms", ResponseTimeBelow(500)),
    ("time <2s", ResponseTimeBelow(2_000)),
    ("time < 500", ResponseTimeBelow(500)),
    ("certificate > 14d", CertificateDays(14)),
    ("certificate >= 1 day", CertificateDays(1)),
]


@pytest.mark.parametrize(("line", "assertion"), LINES, ids=[line for line, _ in LINES])
def test_a_line_and_the_line_of_what_it_says(line, assertion):
    assert parse_assertion(line) == assertion
    assert parse_assertion(assertion_line(assertion)) == assertion
    assert validate_assertions([msgspec.to_builtins(assertion)]) == [assertion]
    assert decode_assertions(encode_assertions([assertion])) == [assertion]


WRONG_LINES = [
    ("", "must be 'status 2xx'"),
    ("Status 200", "must be 'status 2xx'"),
    ("nonsense 1", "must be 'status 2xx'"),
    ("status", "set: must be like 200"),
    ("status 2x", "set: must be like 200"),
    ("status 299-200", "set: must be like 200"),
    ("body", "write 'body contains TEXT'"),
    ("body contains", "write 'body contains TEXT'"),
    ('body contains ""', "text: must be 1 to 1000 characters"),
    ("body contains " + "x" * 1_001, "text: must be 1 to 1000 characters, not 1001"),
    ("body contains a\0", "must not contain NUL"),
    ("body contains \ud800", "is not valid Unicode"),
    ("body matches (", "is not a regular expression of RE2"),
    (r"body matches (a)\1", "is not a regular expression of RE2"),
    ("body matches (?<!a)b", "is not a regular expression of RE2"),
    ("body matches (a|b){1000}", "is too large: "),
    ("json", "write 'json PATH OP VALUE'"),
    ("json $.a = 1", "write 'json PATH OP VALUE'"),
    ("json a", "is not a JSON path such as"),
    ("json $.a[", "is not a JSON path such as"),
    ("json $.a[?nope(@)]", "is not a JSON path such as"),
    ("json $" + ".a" * 600, "path: must be 1 to 1000 characters, not 1201"),
    ("json $" + "[?$" * 300, "is not a JSON path such as"),
    ("json $.a ==", "value: is required with =="),
    ("json $.a exists 1", "value: leave it out"),
    ("json $.a == up", "is not JSON: texts stand in quotes"),
    ("json $.a < true", "value: < compares numbers or texts, not True"),
    ("json $.a matches", "value: is required with matches"),
    ("json $.a matches (", "value: '(' is not a regular expression of RE2"),
    ('json $.a == "\\u0000"', "must not contain NUL"),
    ("header x", "write 'header NAME == VALUE'"),
    ("header a(b == c", "name: 'a(b' is not a header name"),
    ("header a == b\nc", "has neither line ends nor control characters"),
    ("header a matches (", "is not a regular expression of RE2"),
    ("time > 5", "write 'time < 500ms'"),
    ("time < 0ms", "ms: must be from 1 to 600000, not 0"),
    ("time < 601s", "ms: must be from 1 to 600000"),
    ("certificate 14", "write 'certificate > 14d'"),
    ("certificate > 0d", "days: must be from 1 to 36500"),
]


@pytest.mark.parametrize(("line", "why"), WRONG_LINES, ids=[ascii(line)[:40] for line, _ in WRONG_LINES])
def test_a_wrong_line_is_refused_in_one_line(line, why):
    with pytest.raises(InvalidInputError) as refused:
        parse_assertion(line)
    assert str(refused.value).startswith("assert: ")
    assert why in str(refused.value)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 700


WRONG_MAPS = [
    ({}, "type must be status, body_contains, "),
    (1, "must be a map with a type, not 1"),
    ({"type": "body"}, "type must be status, body_contains, "),
    ({"type": ["status"]}, "type must be status, body_contains, "),
    ({"type": "body_contains"}, "(body_contains): Object missing required field `text`"),
    ({"type": "body_contains", "text": 1}, "Expected `str`, got `int`"),
    ({"type": "body_contains", "text": "a", "case": False}, "unknown field `case`"),
    ({"type": "json_path", "path": "$", "op": "~", "value": 1}, "Invalid enum value '~'"),
    ({"type": "json_path", "path": "$", "value": 1}, "value: leave it out"),
    ({"type": "json_path", "path": "$", "op": "==", "value": float("nan")}, "is not a value that JSON has"),
    ({"type": "json_path", "path": "$", "op": "==", "value": b"x"}, "can't be written as JSON"),
    ({"type": "json_path", "path": "$", "op": "==", "value": 1 << 70}, "can't be written as JSON"),
    ({"type": "json_path", "path": "$", "op": "==", "value": "x" * 5_000}, "at most 4096 bytes of JSON"),
    ({"type": "json_path", "path": "$", "op": "<", "value": [1]}, "value: < compares numbers or texts"),
    ({"type": "json_path", "path": "$", "op": "matches", "value": 1}, "value: must be a regular expression, not 1"),
    ({"type": "response_time_below", "ms": "5"}, "Expected `int`, got `str`"),
    ({"type": "response_time_below", "ms": True}, "Expected `int`, got `bool`"),
]


@pytest.mark.parametrize(("written", "why"), WRONG_MAPS, ids=[ascii(each)[:60] for each, _ in WRONG_MAPS])
def test_a_wrong_map_is_refused_and_says_which(written, why):
    with pytest.raises(InvalidInputError) as refused:
        project_from_map({"url": URL, "assertions": [OK, written]})
    assert str(refused.value).startswith("assertions: number 2")
    assert why in str(refused.value)


def test_a_list_has_limits():
    assert len(validate_assertions([OK] * ASSERTIONS_MAX)) == ASSERTIONS_MAX
    with pytest.raises(InvalidInputError, match="assertions: must be at most 50, not 51"):
        validate_assertions([OK] * (ASSERTIONS_MAX + 1))
    with pytest.raises(InvalidInputError, match="too large together: "):
        validate_assertions([{"type": "body_matches", "pattern": "a{400}"}] * 2)
    for wrong in ({}, "status 2xx", 1):
        with pytest.raises(InvalidInputError, match="assertions: must be a list of maps"):
            project_from_map({"url": URL, "assertions": wrong})


def test_no_assertions_are_none():
    for written in (None, []):
        assert project_from_map({"url": URL, "assertions": written}).assertions is None
    for column in ("null", "[]", []):
        assert canonical_assertions(column) is None


def test_fields_are_canonical_and_stay_so():
    written = {"type": "header", "name": "SERVER", "op": "==", "value": "x"}
    fields = project_from_map({"url": URL, "assertions": [written]})
    assert fields.assertions == [{"type": "header", "name": "server", "op": "==", "value": "x"}]
    assert project_from_map(msgspec.to_builtins(fields)) == fields


ROW = {
    "id": 7, "url": URL, "method": "GET", "headers": None, "body": None, "expected_status": "200", "interval": 5,
    "unit": "minutes", "timeout_ms": 1_000, "follow_redirects": True, "since": None, "options": None,
}  # fmt: skip


def test_a_row_becomes_a_spec_that_travels():
    for column in ([OK], json.dumps([OK])):
        spec = spec_from_row(ROW | {"assertions": column})
        assert decode_assertions(spec.assertions) == [BodyContains("ok")]
        assert decode_spec(encode_spec(spec)) == compact(spec) == spec
    twins = [compact(decode_spec(encode_spec(spec))) for _ in range(2)]
    assert twins[0].assertions is twins[1].assertions
    assert ProjectSpec(1, URL, 1_000, 0).assertions is None


@pytest.mark.parametrize("column", ['["x"]', '[{"type": "body_matches", "pattern": "("}]', "{}", [{"type": "no"}]])
def test_a_row_with_a_wrong_list_is_refused(column):
    with pytest.raises(InvalidInputError, match="assertions: "):
        spec_from_row(ROW | {"assertions": column})


# ---- fuzz ------------------------------------------------------------------------------------------------------------


def result_of(read, written):
    """What was read, or why not."""
    try:
        return read(written), None
    except InvalidInputError as error:
        return None, str(error)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from(["set", "text", "pattern", "path", "op", "value", "name", "ms", "days", "x"])
words = st.sampled_from(["==", "exists", "matches", "contains", "$.a", "$..*", "2xx", "(", "a", "<", 5, 0, -1])
maps = st.fixed_dictionaries({"type": st.sampled_from([*assertions.TYPES, "no"])}).flatmap(
    lambda base: st.dictionaries(fields, words | json_values, max_size=4).map(lambda more: base | more)
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(maps | json_values, max_size=3) | json_values)
def test_any_list_is_canonical_or_refused(written):
    valid, why = result_of(validate_assertions, written)
    if valid is None:
        assert why.startswith("assertions: ")
        return
    again = validate_assertions(msgspec.to_builtins(valid))
    assert again == valid
    if valid:
        assert decode_assertions(encode_assertions(valid)) == valid
    assert all(parse_assertion(assertion_line(each)) == each for each in valid)


heads = st.sampled_from(
    ["", "status ", "body contains ", "body matches ", "json ", "json $.a ", "header a ", "time < "]
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.builds(str.__add__, heads, st.text(max_size=40)))
@example('body contains "\\ud800"')
@example("json $['\t == 1")
def test_any_line_is_read_or_refused(line):
    assertion, why = result_of(parse_assertion, line)
    if assertion is None:
        assert why.startswith("assert: ")
        return
    assert parse_assertion(assertion_line(assertion)) == assertion
    assert validate_assertions([msgspec.to_builtins(assertion)]) == [assertion]


def test_who_asserts_nothing_loads_neither_library():
    """Importing both takes 50 ms and 10 MB."""
    code = (
        "import sys, worker.service, coordinator.service\n"
        "print([name for name in sys.modules if name.startswith(('re2', 'jsonpath'))])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout == "[]\n"
