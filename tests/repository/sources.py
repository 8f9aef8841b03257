"""The repository's Python files as syntax trees: what they import, define and call.

Only what stands in the text; nothing is imported or run.
"""

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("cluster", "coordinator", "worker", "writer")


def files_of_product() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def files_of_tests() -> list[Path]:
    return sorted((ROOT / "tests").rglob("*.py"))


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def module_path(name: str) -> Path | None:
    """The file of a module of ours; None for somebody else's, or a name that is no module."""
    base = ROOT.joinpath(*name.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if name.split(".", maxsplit=1)[0] in PACKAGES and path.is_file():
            return path
    return None


@cache
def imports_of(tree: ast.Module) -> tuple[tuple[str, int], ...]:
    """Every module that is imported anywhere in a file, functions included, with its line."""
    return tuple(_imports_of(tree))


def _imports_of(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            module = node.module or ""
            yield module, node.lineno
            for alias in node.names:
                if module_path(f"{module}.{alias.name}") is not None:
                    yield f"{module}.{alias.name}", node.lineno
        elif isinstance(node, ast.Call) and called_name(node) in ("__import__", "importlib.import_module"):
            argument = node.args[0] if node.args else None
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield argument.value, node.lineno
            else:
                yield "*computed*", node.lineno


def called_name(call: ast.Call) -> str:
    """``a.b.c`` for a call of that name; what is not a plain name is left out."""
    parts: list[str] = []
    target: ast.expr = call.func
    while isinstance(target, ast.Attribute):
        parts.append(target.attr)
        target = target.value
    if isinstance(target, ast.Name):
        parts.append(target.id)
    return ".".join(reversed(parts))


def repository_files() -> list[Path]:
    """Everything that is, or would be, committed; in an unpacked archive everything that is not generated."""
    if (ROOT / ".git").exists():
        listed = subprocess.run(
            ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            check=True,
            capture_output=True,
        ).stdout.decode()
        return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]
    generated = {"__pycache__", ".venv", "build", "dist"}
    return [
        path
        for path in ROOT.rglob("*")
        if path.is_file()
        and not generated & set(path.relative_to(ROOT).parts)
        and not any(
            part.endswith((".egg-info", "_cache")) or part == ".hypothesis" for part in path.relative_to(ROOT).parts
        )
    ]
