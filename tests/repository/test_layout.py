"""What lies where: the top level is agreed, and migrations are an unbroken line."""

import re
import tomllib

from tests.repository.sources import ROOT, repository_files

FOLDERS = {"cluster", "coordinator", "worker", "writer", "deploy", "tests"}
TEXT_FILES = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "NOTICE", "CONTRIBUTING.md", "SECURITY.md"}
MIGRATION = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")


def top_level():
    return {path.relative_to(ROOT).parts[0] for path in repository_files()}


def test_the_top_level_is_as_agreed():
    unexpected = {name for name in top_level() if not name.startswith(".")} - FOLDERS - TEXT_FILES
    assert not unexpected, unexpected


def test_what_the_top_level_needs_is_there():
    assert {"cluster", "coordinator", "worker", "writer", "tests", "pyproject.toml", "LICENSE"} <= top_level()


def test_migrations_are_numbered_without_holes():
    names = sorted(path.name for path in (ROOT / "cluster/migrations").iterdir() if path.suffix == ".sql")
    numbers = []
    for name in names:
        match = MIGRATION.fullmatch(name)
        assert match is not None, f"{name}: NNNN_words.sql"
        numbers.append(int(match.group(1)))
    assert numbers == list(range(1, len(numbers) + 1))
    assert numbers


def test_only_migrations_lie_among_the_migrations():
    strangers = [
        path.name
        for path in repository_files()
        if path.parent == ROOT / "cluster/migrations" and path.suffix != ".sql" and path.name != "__init__.py"
    ]
    assert not strangers


def test_every_file_the_program_reads_is_packaged():
    """Files beside the code that are no code reach an installation only by package-data."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    patterns = tool["setuptools"]["package-data"]
    for package in ("cluster", "coordinator", "worker", "writer"):
        packaged = {path for pattern in patterns.get(package, []) for path in (ROOT / package).glob(pattern)}
        others = {
            path
            for path in repository_files()
            if path.is_relative_to(ROOT / package) and path.suffix not in (".py", ".pyc")
        }
        assert others <= packaged, others - packaged


def test_no_file_is_large():
    """Nothing generated, nothing binary slips in."""
    large = {
        str(path.relative_to(ROOT)): path.stat().st_size for path in repository_files() if path.stat().st_size > 200_000
    }
    assert not large, large
