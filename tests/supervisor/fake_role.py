"""A tiny role for tests of the supervisor: a program that obeys FAKE_... variables.

python fake_role.py ROLE NAME
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import msgspec
import zmq

from cluster import config, sockets
from cluster.messages import control
from cluster.runtime import role_locks

role, name = sys.argv[1:]
settings = config.from_environ(role=role)
stop = threading.Event()


def say(level, message, **extra):
    line = {"ts": "2026-01-01T00:00:00.000Z", "level": level, "role": "liar", "pid": 1, "logger": role, "msg": message}
    print(json.dumps(line | extra), file=sys.stderr, flush=True)


def write(path, line):
    with path.open("a") as file:
        file.write(line + "\n")


def watch_stdin():
    while os.read(0, 4096):
        pass
    stop.set()


def serve_coordinator():
    context = zmq.Context()
    router = sockets.bind_router(context, settings.control)
    heard = Path(os.environ["FAKE_HEARD"])
    scripted = json.loads(os.environ.get("FAKE_TELL", "[]"))
    while not stop.is_set():
        if not router.poll(20):
            continue
        peer, body = router.recv_multipart()
        message = control.decode_to_coordinator(body)
        write(heard, json.dumps(msgspec.to_builtins(message)))
        if isinstance(message, control.SupervisorHello):
            beat = control.CoordinatorHeartbeat(3, 3, 4096, "running", True)
            router.send_multipart([peer, control.encode(beat)])
            while scripted:
                router.send_multipart([peer, tell(scripted.pop(0), message)])
    router.close()
    context.term()
    sockets.remove_ipc_path(settings.control)


def tell(what, hello):
    if what == "garbage":
        return b"\xc1garbage"
    if what["type"] == "set_workers":
        return control.encode(control.SetWorkers(what["names"]))
    incarnation = next(each.incarnation for each in hello.alive if each.name == what["name"])
    return control.encode(control.KillProcess(what["name"], incarnation, "it hangs"))


signal.signal(signal.SIGTERM, lambda *_: stop.set())
signal.signal(signal.SIGINT, signal.SIG_IGN)
if role in os.environ.get("FAKE_DEAF", "").split(","):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
threading.Thread(target=watch_stdin, daemon=True).start()
if name == os.environ.get("FAKE_BAD_CONFIGURATION"):
    say("error", f"{name} cannot be like that; do it otherwise")
    sys.exit(2)
if name == os.environ.get("FAKE_CRASH"):
    raise RuntimeError("broken on purpose")
with role_locks(settings):
    write(Path(os.environ["FAKE_BOOK"]), f"start {name} {os.getpid()} {settings.incarnation}")
    say("info", f"hello from {name}", answer=42)
    if role == "coordinator":
        serve_coordinator()
    else:
        stop.wait()
    if role in os.environ.get("FAKE_SLOW", "").split(","):
        time.sleep(float(os.environ["FAKE_SLOW_S"]))
    write(Path(os.environ["FAKE_BOOK"]), f"stop {name} {os.getpid()} {settings.incarnation}")
sys.exit(int(os.environ.get("FAKE_STATUS", "0")) if role == "worker" else 0)
