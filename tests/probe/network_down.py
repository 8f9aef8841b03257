"""Run by test_probe_network_down, in a network of its own: hosts beyond a cable that is pulled out and put back.

Six hosts are in a second network namespace, and one is nowhere.  Prints, phase by phase, what was found of each.
"""

import asyncio
import collections
import functools
import json
import subprocess
import sys
import time

import uvloop
from probe_scripts import spec

from worker.probe.choose import ChoosingProber
from worker.probe.own_fault_sieve import OwnFaultSieve

NETS = range(10, 16)
HOSTS = [f"10.{net}.0.1" for net in NETS]
DEAD = "10.99.0.1"
PORT = 8_000
PHASE_S = 20.0
SERVER = """
import http.server

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
"""


def here(*command: str) -> None:
    subprocess.run(command, check=True)


class Poller:
    """Polls all hosts again and again; ``found``: of the phase that goes on, and of polls begun in it."""

    def __init__(self) -> None:
        self.prober = ChoosingProber(body_limit_bytes=1_000)
        self.sieve = OwnFaultSieve(lambda: self.prober.names_answered_at)
        self.busy: set[str] = set()
        self.found: dict[str, collections.Counter[str]] = {}

    def start(self, host: str) -> None:
        self.busy.add(host)
        deliver = functools.partial(self.take, host, self.found)

        def done(outcome) -> None:
            if (passed := self.sieve.sift(outcome, deliver)) is not None:
                deliver(passed)

        number = int(host.split(".")[1])
        self.prober.start(spec(f"http://{host}:{PORT}/", number=number, timeout_ms=2_000), done)

    def take(self, host: str, found, outcome) -> None:
        self.busy.discard(host)
        found[host][outcome.error_code or outcome.status] += 1

    async def phase(self, name: str, wanted: dict[str, str]) -> None:
        """Until each host was found as it is wanted to be."""
        found = self.found = {host: collections.Counter() for host in [*HOSTS, DEAD]}
        end_at = time.monotonic() + PHASE_S
        while time.monotonic() < end_at and any(found[host][code] < 2 for host, code in wanted.items()):
            self.sieve.ask()
            for host in {*HOSTS, DEAD} - self.busy:
                self.start(host)
            await asyncio.sleep(0.05)
        while self.busy and time.monotonic() < end_at + PHASE_S:
            await asyncio.sleep(0.05)
        print(json.dumps([name, found]))


async def main(there: list[str]) -> None:
    here("ip", "addr", "add", "10.9.0.1/24", "dev", "near")
    here("ip", "link", "set", "near", "up")
    here(*there, "ip", "link", "set", "lo", "up")
    here(*there, "ip", "addr", "add", "10.9.0.2/24", "dev", "far")
    here(*there, "ip", "link", "set", "far", "up")
    for net in NETS:
        here(*there, "ip", "addr", "add", f"10.{net}.0.1/32", "dev", "lo")
    here("ip", "route", "add", "10.0.0.0/8", "via", "10.9.0.2")
    here(*there, "ip", "route", "add", "blackhole", f"{DEAD}/32")
    poller = Poller()
    ok = dict.fromkeys(HOSTS, "success")
    server = subprocess.Popen([*there, sys.executable, "-c", SERVER])
    try:
        while True:
            try:
                _, writer = await asyncio.open_connection(HOSTS[0], PORT)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                break
        await poller.phase("up", {**ok, DEAD: "connect_timeout"})
        here(*there, "ip", "link", "set", "far", "down")
        await poller.phase("down", dict.fromkeys(HOSTS, "local"))
        here(*there, "ip", "link", "set", "far", "up")
        await poller.phase("up again", {**ok, DEAD: "connect_timeout"})
    finally:
        server.terminate()
        server.wait()
        await poller.prober.close(0)
        await poller.sieve.close()


def run() -> None:
    holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
    try:
        here("ip", "link", "add", "near", "type", "veth", "peer", "name", "far")
        here("ip", "link", "set", "lo", "up")
        own = subprocess.check_output(["readlink", "/proc/self/ns/net"])
        while subprocess.check_output(["readlink", f"/proc/{holder.pid}/ns/net"]) == own:
            time.sleep(0.01)
        here("ip", "link", "set", "far", "netns", str(holder.pid))
        uvloop.run(main(["nsenter", "--target", str(holder.pid), "--net"]))
    finally:
        holder.kill()
        holder.wait()


if __name__ == "__main__":
    run()
