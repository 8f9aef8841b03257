"""The README names every command, option, setting and metric; what it shows can be run."""

import json
import re
import shlex
import threading
from datetime import UTC, datetime, timedelta
from typing import get_args

import asyncpg
import click
import msgspec
import pytest
import zmq

from cluster import config
from cluster.assertions import (
    TYPES,
    HeaderOp,
    JsonOp,
    assertion_line,
    encode_assertions,
    parse_assertion,
    validate_assertions,
)
from cluster.cli import cluster
from cluster.cli.admin import add, project_from_written
from cluster.http_options import OPTION_NAMES, HttpOptions
from cluster.messages.admin import decode_request
from cluster.settings import Settings
from tests.docs.documents import blocks, code_spans, metric_names, row_of
from tests.docs.repository_facts import read
from worker.probe.judging import Answer, judge_for

README = read("README.md")


def commands(command=cluster, path=("cluster",)):
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            yield from commands(each, (*path, name))
    else:
        yield path, command


def options(command):
    return {flag for each in command.params if isinstance(each, click.Option) for flag in each.opts}


COMMANDS = dict(commands())


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_and_each_of_its_options_is_named(path):
    spans = code_spans(README)
    assert any(re.match(re.escape(" ".join(path)) + r"( |$)", span) for span in spans), f"`{' '.join(path)}`"
    named = {flag for span in spans for flag in re.findall(r"--[a-z][a-z-]*", span)}
    assert not options(COMMANDS[path]) - named


@pytest.mark.parametrize("option", config.OPTIONS, ids=lambda option: option.name)
def test_every_option_has_a_row_with_its_flag_variables_key_and_default(option):
    row = row_of(README, f"`{option.flag}`", *(f"`{variable}`" for variable in option.variables), f"`{option.name}`")
    default = row[3].strip("`")
    if option.kind in ("path", "file", "database_url", "endpoint", "switch"):
        assert default
    else:
        made = config.load({option.name: default}, {})
        assert getattr(made, option.field) == getattr(Settings(data_dir=made.data_dir), option.field)


def test_every_field_of_the_settings_is_an_option_or_a_variable_of_a_role():
    fields = {field.name for field in msgspec.structs.fields(Settings)}
    assert fields == {option.field for option in config.OPTIONS} | set(config._ROLE_VARIABLES)
    assert {f"`{variable}`" for variable in config.VARIABLES} <= {f"`{span}`" for span in code_spans(README)}


@pytest.mark.parametrize("name", sorted(metric_names()))
def test_every_metric_is_named(name):
    assert f"`{name}`" in README


@pytest.mark.parametrize("path", ["/", "/status", "/healthz", "/readyz", "/metrics"])
def test_every_http_path_is_named(path):
    assert row_of(README, f"`{path}`")


@pytest.mark.parametrize("document", ["README.md", "deploy/RUNBOOK.md"])
def test_command_lines_in_code_blocks_are_accepted_by_the_command_line(document):
    lines = [line for block in blocks(read(document), "sh") for line in block.splitlines()]
    seen = 0
    for line in lines:
        if not line.startswith("cluster "):
            continue
        command, name, arguments = cluster, "cluster", shlex.split(line, comments=True)[1:]
        while isinstance(command, click.Group):
            name, *arguments = arguments
            command = command.commands[name]
        command.make_context(name, list(arguments))
        seen += 1
    assert seen


@pytest.mark.parametrize("query", blocks(README, "sql"), ids=range(len(blocks(README, "sql"))))
async def test_the_queries_run(query, database_url):
    conn = await asyncpg.connect(database_url)
    try:
        await conn.execute("INSERT INTO projects (url) VALUES ('http://127.0.0.1:9/')")
        await conn.fetch(query)
    finally:
        await conn.close()


def http_option_rows():
    """(columns, flags, the example's arguments) of the table of HTTP options."""
    section = README.partition("## HTTP options of a project")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \| (`--.*?) \| .* \| `([^`]+)` \|$", section, flags=re.MULTILINE)
    return [
        (re.findall(r"`(\w+)`", names), re.findall(r"`(--[\w-]+)`", flags), example) for names, flags, example in rows
    ]


@pytest.mark.parametrize(("columns", "flags", "example"), http_option_rows(), ids=lambda each: str(each)[:40])
def test_the_example_of_an_http_option_sets_it(columns, flags, example):
    arguments = shlex.split(example)
    if arguments[0] == "cluster":
        assert arguments[1] == "add"
        arguments = arguments[2:]
    else:
        arguments.append("https://api.example.org/health")
    assert any(flag in arguments for flag in flags)
    context = add.make_context("add", arguments)
    url, *_ = [context.params.pop(name) for name in ("url", "project_id", "config_file")]
    given = {name: value for name, value in context.params.items() if value is not None and value is not False}
    project = project_from_written(url, {name: value for name, value in given.items() if value != ()})
    changed = {name for name in OPTION_NAMES if getattr(project, name) != getattr(HttpOptions(), name)}
    assert changed
    assert changed <= set(columns)


def test_every_http_option_has_a_row_with_an_example():
    assert {column for columns, _, _ in http_option_rows() for column in columns} == set(OPTION_NAMES)


def assertion_rows():
    rows = re.findall(r"^\| `(\{\"type\".*?\})` \| `(.*?)` \| ", README, flags=re.MULTILINE)
    return [(json.loads(written), line) for written, line in rows]


def documented_answer(**changes):
    """The answer of the README, over TLS and in time."""
    (block,) = blocks(README, "http")
    head, body = block.split("\n\n", 1)
    first, *lines = head.splitlines()
    fields = [tuple(line.split(": ", 1)) for line in lines]
    valid_until = {"notAfter": datetime.now(UTC) + timedelta(days=15)}
    answer = Answer(
        status=int(first.split()[1]),
        response_time_ms=499.0,
        fields=fields,
        body=body.encode(),
        whole=True,
        certificate={name: f"{at:%b %d %H:%M:%S %Y} GMT" for name, at in valid_until.items()},
        limit_bytes=1 << 20,
    )
    return msgspec.structs.replace(answer, **changes)


@pytest.mark.parametrize(("written", "line"), assertion_rows(), ids=[line for _, line in assertion_rows()])
def test_each_assertion_holds_for_the_answer_shown_and_for_no_other(written, line):
    (assertion,) = validate_assertions([written])
    assert parse_assertion(line) == assertion
    assert assertion_line(assertion) in {line, f"{line} exists"}
    judge = judge_for(encode_assertions([assertion]))
    assert judge.failures(documented_answer()) == []
    other = documented_answer(
        status=500,
        response_time_ms=500.0,
        fields=[],
        body=b'{"error": 1}' if written.get("op") != "absent" else b'{"error": null}',
        certificate=None,
    )
    (failure,) = judge.failures(other)
    assert failure.startswith(assertion_line(assertion) + ": ")


def test_each_type_of_assertion_and_each_operator_has_an_example():
    rows = [written for written, _ in assertion_rows()]
    assert {written["type"] for written in rows} == set(TYPES)
    section = README.partition("\n## Assertions\n")[2].partition("\n## ")[0]
    for op in {*get_args(JsonOp), *get_args(HeaderOp)} - {"exists"}:
        assert any(written.get("op") == op for written in rows) or f"`{op}`" in section


def test_there_are_queries():
    assert len(blocks(README, "sql")) >= 5


def test_the_admin_example_sends_requests_the_coordinator_accepts(tmp_path):
    (example,) = blocks(README, "python")
    endpoint = f"ipc://{tmp_path}/a"
    context = zmq.Context()
    server = context.socket(zmq.ROUTER)
    server.bind(endpoint)
    accepted = []

    def answer():
        for reply in (b'{"type": "ok", "id": 7}', b'{"type": "ok", "ids": [7]}'):
            if not server.poll(10_000):
                return
            *envelope, body = server.recv_multipart()
            accepted.append(type(decode_request(body)).__name__)
            server.send_multipart([*envelope, reply])

    thread = threading.Thread(target=answer)
    thread.start()
    names = {}
    try:
        exec(re.sub(r"ipc://[^\"]+", endpoint, example), names)
    finally:
        thread.join()
        for socket in (names.get("socket"), server):
            if socket is not None:
                socket.close(0)
        context.term()
        if "context" in names:
            names["context"].term()
    assert accepted == ["AddProject", "RemoveProjects"]
