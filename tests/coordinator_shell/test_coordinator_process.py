"""`python -m coordinator` as a process: its signals, exit statuses and leftovers."""

import asyncio
import os
import signal
import sys

import msgspec
import pytest
import zmq
import zmq.asyncio

from cluster import config
from cluster.settings import Settings
from tests.coordinator_shell.test_http_server import free_port
from tests.coordinator_shell.waiting import until


@pytest.fixture
async def coordinator(tmp_path, database_url):
    started = []

    async def start(**changes):
        settings = Settings(
            data_dir=tmp_path, database_url=database_url, http=f"127.0.0.1:{free_port()}", name="coordinator"
        )
        settings = msgspec.structs.replace(settings, **changes)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "coordinator",
            env=config.role_environ(settings, os.environ),
            stdin=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        started.append(process)
        return process, settings

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def status(settings):
    """By a bare REQ socket that sends JSON."""
    with zmq.asyncio.Context() as context, context.socket(zmq.REQ) as client:
        client.setsockopt(zmq.LINGER, 0)
        client.connect(settings.admin)
        await client.send(b'{"type":"status"}')
        return msgspec.json.decode(await asyncio.wait_for(client.recv(), 20))["status"]


async def ended(process):
    _, errors = await asyncio.wait_for(process.communicate(), 20)
    return process.returncode, errors.decode()


async def test_sigterm_ends_it_with_nothing_left(coordinator):
    process, settings = await coordinator(run_id="run")
    assert (await status(settings))["phase"] in {"loading", "gathering"}
    process.send_signal(signal.SIGTERM)
    code, errors = await ended(process)
    assert code == 0, errors
    assert "Traceback" not in errors
    assert not list(settings.run_dir.glob("*.sock"))


async def test_an_orphan_ends_itself(coordinator):
    process, settings = await coordinator(supervised=True)
    await status(settings)
    process.stdin.close()
    code, errors = await ended(process)
    assert code == 0, errors


async def test_killed_and_started_again_it_goes_on(coordinator):
    process, settings = await coordinator(run_id="run")
    await status(settings)
    state = settings.data_dir / "coordinator" / "state.msgpack"
    await until(state.exists)
    process.kill()
    await ended(process)
    process, _ = await coordinator(run_id="run", http=settings.http)
    assert (await status(settings))["database"]["state"] in {"up", "down"}
    process.send_signal(signal.SIGTERM)
    assert (await ended(process))[0] == 0


@pytest.mark.parametrize(
    ("changes", "code", "line"),
    [
        ({"database_url": None}, 1, "--database-url"),
        ({"http": "203.0.113.1:8700", "supervised": True}, 1, "cannot serve HTTP"),
        ({"http": "203.0.113.1:8700"}, 1, "neither a token nor a user"),
        ({"control_endpoint": "ipc:///no/such/directory/control.sock"}, 1, "cannot listen on"),
    ],
)
async def test_what_it_cannot_start_with_is_one_line(coordinator, changes, code, line):
    process, _ = await coordinator(**changes)
    status, errors = await ended(process)
    assert status == code
    assert line in errors.splitlines()[-1]
    assert "Traceback" not in errors
