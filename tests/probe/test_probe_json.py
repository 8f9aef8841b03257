"""What a JSON path finds in a document, and that it gives up when it asks for much."""

import pytest

from worker.probe import json_document


def found(path, text, visits=10_000):
    document = json_document.read_document(text)
    json_document.allow_visits(visits)
    return json_document.find_values(path, document)


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("$.a.b", [1]),
        ("$['a']['b']", [1]),
        ("$.l[-1]", [{"n": "y", "v": 2}]),
        ("$.l[*].n", ["x", "y"]),
        ("$.l[?@.n == 'y'].v", [2]),
        ("$.l[?match(@.n, '[x]')].v", [1]),
        ("$.l[?search(@.n, 'y|z') && @.v > 1].v", [2]),
        ("$.l[?match(@.n, '(')].v", []),
        ("$.l[?length(@) == 2].v", [1, 2]),
        ("$..v", [1, 2]),
        ("$.l[?@ == $.l[0]].v", [1]),
        ("$.none", []),
    ],
)
def test_a_path_finds(path, values):
    text = b'{"a": {"b": 1}, "l": [{"n": "x", "v": 1}, {"n": "y", "v": 2}]}'
    assert found(path, text) == values


WIDE = b"[" + b"1," * 20_000 + b"1]"
DEEP = b"[" * 80 + b"]" * 80
OBJECTS = b"[" + b'{"a": [1, 2]},' * 5_000 + b"{}]"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("$..*", WIDE),
        ("$[::2]", WIDE),
        ("$..*..*..*", DEEP),
        ("$" + "[0,0,0,0]" * 70, DEEP),
        ("$[?@.a == $[1].a]", OBJECTS),
        ("$..[?@ == $]", b"[" * 60 + WIDE + b"]" * 60),
        ("$[?match('x', @)]", b"[" + b",".join(b'"%d{9}"' % n for n in range(100)) + b"]"),
        ("$[?search($[0], 'x+y')]", b'["' + b"x" * 50_000 + b'"' + b',""' * 100 + b"]"),
    ],
)
def test_a_path_that_asks_for_much_gives_up(path, text):
    with pytest.raises(json_document.TooMuchWorkError):
        found(path, text)


@pytest.mark.parametrize("text", [b"", b"{", b"[1,]", b"\xff", b"[" * 200 + b"]" * 200, b"[" * 5_000, b'{"a":1}x'])
def test_what_is_no_document_says_so(text):
    with pytest.raises(json_document.DocumentError, match="JSON"):
        json_document.read_document(text)
