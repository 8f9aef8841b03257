"""What the documents must agree with, read out of the source: log lines, error codes, options, messages."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("cluster", "coordinator", "worker", "writer")
LOGGED = {"warning", "error", "critical", "exception"}
FRAGMENT_CHARS_MIN = 8  # shorter literal parts of a message identify nothing


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def calls() -> Iterator[tuple[Path, ast.Call]]:
    for path, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                yield path, node


def fragments(message: ast.expr) -> list[str]:
    """The literal parts of a message, without what is filled in."""
    match message:
        case ast.Constant(value=str(text)):
            parts = re.split(r"%[-+0-9.]*[sdrgf]", text)
        case ast.JoinedStr(values=values):
            parts = [each.value for each in values if isinstance(each, ast.Constant) and isinstance(each.value, str)]
        case ast.BinOp(left=left):  # f"..." + (f"..." if ... else "")
            return fragments(left)
        case _:
            parts = []
    return [" ".join(part.split()) for part in parts]


def warnings_logged() -> set[tuple[str, str]]:
    """(module, the longest literal part) of each line logged with warning or above."""
    found = set()
    for path, call in calls():
        message: ast.expr | None = None
        match call:
            case ast.Call(func=ast.Attribute(attr=attr), args=[first, *_]) if attr in LOGGED:
                message = first
            case ast.Call(func=ast.Attribute(attr="fail"), args=[first, *_]):
                message = first
            case ast.Call(func=ast.Name(id="WriteLog" | "Report"), args=[level, text, *_]):
                levels = {each.value for each in ast.walk(level) if isinstance(each, ast.Constant)}
                message = text if levels & LOGGED else None
        if message is not None:
            longest = max(fragments(message), key=len, default="")
            if len(longest) >= FRAGMENT_CHARS_MIN:
                found.add((str(path.relative_to(ROOT)), longest))
    return found


def error_codes() -> set[str]:
    """Every code that an error of ours, an admin reply or the command line can carry."""
    found = set()
    for path, tree in sources():
        for node in ast.walk(tree):
            match node:
                case ast.Call(
                    func=ast.Name(id="ErrorReply" | "ProblemError"), args=[ast.Constant(value=str(code)), *_]
                ):
                    found.add(code)
                case ast.Call(keywords=keywords):
                    found |= {
                        each.value.value
                        for each in keywords
                        if each.arg == "code"
                        and isinstance(each.value, ast.Constant)
                        and isinstance(each.value.value, str)
                    }
                case ast.Dict(keys=keys, values=values):
                    found |= {
                        value.value
                        for key, value in zip(keys, values, strict=True)
                        if isinstance(key, ast.Constant)
                        and key.value == "code"
                        and isinstance(value, ast.Constant)
                        and isinstance(value.value, str)
                    }
                case ast.FunctionDef(name="__init__", args=arguments) if path.name == "errors.py":
                    for name, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
                        if name.arg == "code" and isinstance(default, ast.Constant):
                            found.add(default.value)
    return found
