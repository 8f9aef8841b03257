"""The OpenAPI document, API.md, the page to try it and the README's lines: complete, and as things are."""

import re
import shlex
from typing import get_args

import msgspec
import orjson
import pytest

from cluster.project import FIELD_NAMES
from coordinator.web import shapes
from coordinator.web.openapi import _ANSWERS, _BODIES, openapi_document, problem_statuses
from coordinator.web.problems import PROBLEMS
from coordinator.web.route import API
from coordinator.web.routes import ROUTES
from tests.docs.documents import blocks, row_of
from tests.docs.repository_facts import read

API_ROUTES = [route for route in ROUTES if route.path.startswith(f"{API}/")]
API_MD = read("coordinator/web/API.md")
README = read("README.md")


def test_each_route_is_described_once():
    document = openapi_document(ROUTES)
    described = {
        (method.upper(), path): operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
    }
    assert set(described) == {(route.method, route.path) for route in API_ROUTES}
    assert len({operation["operationId"] for operation in described.values()}) == len(API_ROUTES)
    for route in API_ROUTES:
        operation = described[route.method, route.path]
        names = {parameter["name"] for parameter in operation["parameters"]}
        wanted = set(re.findall(r"{(\w+)}", route.path)) | ({"If-Match"} if route.if_match else set())
        wanted |= set(route.query.__struct_fields__ if route.query else ())
        assert names == wanted
        assert ("requestBody" in operation) == (route.body is not None)
        assert set(operation["responses"]) == {str(each) for each in (route.status, *problem_statuses(route))}


def test_every_reference_leads_somewhere():
    document = openapi_document(ROUTES)
    references = set(re.findall(r'"\$ref":"#/([^"]+)"', orjson.dumps(document).decode()))
    assert references
    for reference in references:
        found = document
        for step in reference.split("/"):
            found = found[step]
        assert found


def _types(kind):
    return get_args(kind) or (kind,)


@pytest.mark.parametrize("operation", [*_BODIES, *_ANSWERS])
def test_examples_are_of_their_types(operation):
    (route,) = [route for route in ROUTES if route.operation == operation]
    for examples, kind in ((_BODIES, route.body), (_ANSWERS, route.answer)):
        if operation in examples:
            assert any(_fits(examples[operation], each) for each in _types(kind))


def _fits(example, kind):
    try:
        msgspec.convert(example, kind)
    except msgspec.ValidationError:
        return False
    return True


def test_every_field_of_a_project_is_described():
    assert set(shapes.FIELD_TYPES) == set(FIELD_NAMES)
    for kind in (shapes.NewProject, shapes.ProjectPatch):
        assert kind.__struct_fields__ == FIELD_NAMES
    assert set(FIELD_NAMES) < set(shapes.Project.__struct_fields__)


# ---- API.md and the README --------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", API_ROUTES, ids=lambda route: route.operation)
def test_every_endpoint_has_its_row(route):
    rows = [
        line for line in API_MD.splitlines() if line.startswith(f"| `{route.method}` | `{route.path[len(API) :]}` |")
    ]
    assert len(rows) == 1
    _, _, scope, summary, parameters = (cell.strip() for cell in rows[0].strip("|").split("|"))
    assert (scope, summary) == (route.scope, route.summary)
    named = re.findall(r"`([^`]+)`", parameters)
    assert named == [*(route.query.__struct_fields__ if route.query else ()), *(["If-Match"] if route.if_match else [])]


def test_no_endpoint_is_made_up():
    rows = re.findall(r"^\| `(GET|POST|PATCH|DELETE)` \| `([^`]+)` \|", API_MD, flags=re.MULTILINE)
    assert set(rows) == {(route.method, route.path[len(API) :]) for route in API_ROUTES}


@pytest.mark.parametrize("code", PROBLEMS)
def test_every_problem_has_its_row(code):
    row = row_of(API_MD, f"`{code}`", f"| {PROBLEMS[code].status} |")
    assert row[1:] == [str(PROBLEMS[code].status), PROBLEMS[code].title]


async def test_the_lines_of_the_readme_do_what_they_say(api, sql):
    """As curl would send them; the stream is asked for its head alone."""
    (block,) = [each for each in blocks(README, "bash") if "/projects/1/summary" in each]
    lines = [line for line in block.splitlines() if line.startswith("curl ")]
    assert len(lines) >= 8
    for line in lines:
        words = shlex.split(line.replace("$api", api.base))[1:]
        method, url, headers, data = "GET", None, {}, None
        while words:
            match words.pop(0):
                case "-s" | "-N":
                    pass
                case "-X":
                    method = words.pop(0)
                case "-H":
                    name, _, value = words.pop(0).partition(": ")
                    headers[name] = value
                case "-d":
                    data = words.pop(0).encode()
                    method = "POST" if method == "GET" else method
                case word:
                    url = word
        answer = await api("HEAD" if url.endswith("/events") else method, url, data=data, headers=headers)
        assert answer.status in {200, 201}, (line, answer.body)
    assert await sql.fetchval("SELECT interval FROM projects WHERE id = 1 AND unit = 'minutes' AND NOT enabled") == 1


# ---- served -----------------------------------------------------------------------------------------------------


async def test_the_document_and_the_page_are_served(api):
    served = await api.get("/openapi.json")
    assert served.body == orjson.loads(orjson.dumps(openapi_document(ROUTES)))
    page = await api.get("/docs")
    assert page.type == "text/html"
    text = page.body.decode()
    for reference in re.findall(r'(?:href|src)="([^"#]+)"', text):
        if not reference.startswith("data:"):
            assert (await api.get(f"/{reference}")).status == 200, reference
    assert "http://" not in text
    assert "https://" not in text


@pytest.mark.parametrize("name", ["index.html", "docs.js", "docs.css"])
def test_the_page_asks_nobody_else_and_sets_no_markup(name):
    text = read(f"coordinator/web/docs/{name}")
    assert not re.search(r"https?://|innerHTML|eval\(|document\.write|@import", text)
