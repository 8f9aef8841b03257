"""How the code is written: what a linter does not know of this project's rules."""

import ast
import re
from collections import defaultdict

import pytest
from hypothesis import HealthCheck, settings

from tests.repository.sources import (
    ROOT,
    called_name,
    files_of_product,
    files_of_tests,
    imports_of,
    module_name,
    repository_files,
    shown,
    tree_of,
)

UNFINISHED = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X)\b")
VAGUE = re.compile(r"(?:^|_)(?:utils?|helpers?|managers?)(?:_|$)|(?:Util|Helper|Manager)s?(?![a-z])", re.IGNORECASE)
# Functions of ours that are named after the thing they speak to.
VAGUE_BUT_A_TERM = {"notify_service_manager"}
TEXT_SUFFIXES = {".py", ".sql", ".md", ".toml", ".yaml", ".yml", ".service", ".sh", ".txt", ".cfg", ".ini", ""}
LINES_MAX = 1_200


def all_files():
    return files_of_product() + files_of_tests()


def test_every_module_opens_with_its_contract():
    missing = [shown(path) for path in files_of_product() if not ast.get_docstring(tree_of(path))]
    assert not missing, missing


def test_nothing_is_left_unfinished():
    found = []
    for path in repository_files():
        if path.suffix not in TEXT_SUFFIXES:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if UNFINISHED.search(line):
                found.append(f"{shown(path)}:{number}: {line.strip()}")
    assert not found, found


def test_nothing_is_a_stub():
    """A body of ``...`` is for protocols, overloads and abstract methods only."""
    found = []
    for path in files_of_product():
        for owner in ast.walk(tree_of(path)):
            if not isinstance(owner, ast.Module | ast.ClassDef):
                continue
            if isinstance(owner, ast.ClassDef) and any("Protocol" in ast.unparse(base) for base in owner.bases):
                continue
            for node in owner.body:
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.decorator_list:
                    body = [part for part in node.body if not _is_docstring(part)]
                    if all(isinstance(part, ast.Expr) and _is_ellipsis(part.value) for part in body):
                        found.append(f"{shown(path)}:{node.lineno} {node.name}")
    assert not found, found


def _is_docstring(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _is_ellipsis(node):
    return isinstance(node, ast.Constant) and node.value is ...


def test_no_exception_is_swallowed():
    """``except ...: pass`` hides what happened; what is meant is ``contextlib.suppress`` of a narrow type."""
    found = [
        f"{shown(path)}:{handler.lineno}"
        for path in files_of_product()
        for handler in ast.walk(tree_of(path))
        if isinstance(handler, ast.ExceptHandler) and all(isinstance(node, ast.Pass) for node in handler.body)
    ]
    assert not found, found


def test_names_say_what_things_are():
    found = []
    for path in all_files():
        if VAGUE.search(path.stem):
            found.append(f"{shown(path)} (the file)")
        for node in ast.walk(tree_of(path)):
            named = isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            if named and VAGUE.search(node.name) and node.name not in VAGUE_BUT_A_TERM:
                found.append(f"{shown(path)}:{node.lineno} {node.name}")
    assert not found, found


@pytest.mark.parametrize(
    ("name", "vague"),
    [
        ("utils", True),
        ("url_util", True),
        ("TaskManager", True),
        ("helper_of", True),
        ("ring", False),
        ("utilisation", False),
        ("managed", False),
    ],
)
def test_the_rule_on_names_knows_its_words(name, vague):
    assert bool(VAGUE.search(name)) is vague


def test_no_task_is_forgotten():
    """A task nobody holds may be collected before it ends, and its exception is lost."""
    found = []
    for path in files_of_product():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                name = called_name(node.value).split(".")[-1]
                owner = called_name(node.value).split(".")[0]
                if name in ("create_task", "ensure_future", "run_coroutine_threadsafe") and owner not in (
                    "group",
                    "tasks",
                ):
                    found.append(f"{shown(path)}:{node.lineno}")
    assert not found, found


def test_modules_stay_readable():
    found = {
        shown(path): count for path in files_of_product() if (count := len(path.read_text().splitlines())) > LINES_MAX
    }
    assert not found, found


def test_names_of_states_are_unique():
    """One word, one thing: no two classes of one name in the packages."""
    places = defaultdict(list)
    for path in files_of_product():
        for node in tree_of(path).body:
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{shown(path)}:{node.lineno}")
    twice = {name: where for name, where in places.items() if len(where) > 1 and name not in MEANT_TWICE}
    assert not twice, twice


# A core's own vocabulary is in its package's ``events``; a wire message and its part may share a word across sockets.
MEANT_TWICE = {
    "Send", "TellCoordinator", "WriteLog", "MessageReceived", "PeerUnreachable", "StopRequested", "Exit",  # of cores
    "HeldPartition",  # as it is told (control), as it is kept (ticker)
}  # fmt: skip


# ---- tests ----------------------------------------------------------------------------------------------------------

# Where time has to pass because time is what is tested, each with its reason.
SLEEPS = {
    "tests/supervisor/fake_role.py": "plays a role that is slow to stop",
    "tests/probe/test_probe_failures.py": "plays slow servers and a loop that is stuck",
    "tests/probe/test_probe_contract.py": "packets that arrive apart",
    "tests/probe/test_probe_connections.py": "plays slow servers and connections past their deadline",
    "tests/truth/servers.py": "packets that arrive apart, and before a reset",
    "tests/truth/phases.py": "plays slow servers",
    "tests/bench/million.py": "measures over a given time",
    "tests/bench/engine.py": "measures over a given time",
    "tests/bench/api.py": "measures over a given time",
}


def sleeps_outside_loops(tree):
    """Calls of sleep with anything but 0 that are not the pause of a loop which looks for a condition."""

    def walk(node, in_loop):
        if isinstance(node, ast.Call) and called_name(node) in ("time.sleep", "asyncio.sleep", "anyio.sleep", "sleep"):
            nothing = node.args and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0
            if not in_loop and not nothing:
                yield node.lineno
        is_loop = isinstance(node, ast.While | ast.For | ast.AsyncFor)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, in_loop or is_loop)

    return list(walk(tree, in_loop=False))


def test_tests_wait_for_conditions():
    found = [
        f"{shown(path)}:{line}"
        for path in files_of_tests()
        if shown(path) not in SLEEPS
        for line in sleeps_outside_loops(tree_of(path))
    ]
    assert not found, found


def test_the_rule_on_sleeps_tells_them_apart():
    waits = ast.parse("while not done():\n    time.sleep(0.01)\nawait_ = asyncio.sleep(0)")
    sleeps = ast.parse("time.sleep(0.5)\nassert done()")
    assert sleeps_outside_loops(waits) == []
    assert sleeps_outside_loops(sleeps) == [1]


def test_property_tests_are_not_timed():
    """Whichever of them runs alone, or first in a fresh checkout."""
    assert settings.default.deadline is None
    assert HealthCheck.too_slow in settings.default.suppress_health_check


def test_tests_can_fail():
    """A test asserts something, in its own body or in something of ours that it calls."""
    found = []
    for path in files_of_tests():
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or not node.name.startswith("test_"):
                continue
            if path.name in ("sources.py", "conftest.py"):
                continue
            checks = any(
                isinstance(part, ast.Assert)
                or (isinstance(part, ast.Call) and called_name(part).split(".")[-1] not in HARMLESS)
                for part in ast.walk(node)
            )
            if not checks:
                found.append(f"{shown(path)}:{node.lineno} {node.name}")
    assert not found, found


HARMLESS = {"print", "len", "list", "dict", "range", "sleep"}


def test_nothing_is_expected_to_fail():
    """A test may be skipped where its machine lacks something; it may not be given up."""
    found = [
        f"{shown(path)}:{node.lineno}"
        for path in files_of_tests()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute)
        and ast.unparse(node) in ("pytest.mark.xfail", "pytest.xfail", "pytest.mark.skip")
    ]
    assert not found, found


# ---- what leaves the house ------------------------------------------------------------------------------------------

FORBIDDEN = [
    re.compile(r"/wor[k]/"),
    re.compile(r"/tmp/(?:venv|plan)"),
    re.compile(r"(?:pypi\.org|files\.pythonhosted|registry\.npmjs|proxy\.golang)"),
]


def test_nothing_names_this_machine_or_a_registry():
    found = []
    for path in repository_files():
        if path.suffix not in TEXT_SUFFIXES or path == ROOT / "tests/repository/test_text.py":
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            found += [f"{shown(path)}:{number}: {line.strip()}" for pattern in FORBIDDEN if pattern.search(line)]
    assert not found, found


def test_the_rules_look_at_something():
    assert len(files_of_product()) > 40
    assert len(files_of_tests()) > 40
    assert any(module_name(path) == "coordinator.core" for path in files_of_product())
    assert any(name == "msgspec" for path in files_of_product() for name, _ in imports_of(tree_of(path)))
