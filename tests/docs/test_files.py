"""Links lead somewhere, and no document points to a machine, a registry or a plan."""

import re
from urllib.parse import unquote

import pytest

from tests.docs.repository_facts import ROOT


def documents():
    return sorted(path for path in [*ROOT.glob("*.md"), *ROOT.glob("deploy/*.md"), *ROOT.glob("cluster/**/*.md")])


def text_files():
    """Documents, deployment, checks: what people read first.  Sources have tests of their own."""
    below = [path for top in ("deploy", ".ci") for path in (ROOT / top).rglob("*")]
    beside = [path for path in ROOT.iterdir() if path.suffix in {".md", ".toml"} or path.name.startswith(".")]
    return sorted(path for path in {*documents(), *below, *beside} if path.is_file() and path.name != ".git")


def anchors(document):
    titles = re.findall(r"^#+ (.+)$", document, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_resolve(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        file, _, anchor = unquote(target).partition("#")
        found = path.parent / file if file else path
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(found.read_text(encoding="utf-8")), target


# Written so that they don't find themselves.
FORBIDDEN = {
    "a package registry's host": r"(?:py)pi\.org|pythonhosted[.]org|registry\.(?:np)mjs|crates[.]io|proxy\.(?:gol)ang",
    "a path of a machine": r"(?<![\w.])/(?:work|home/[a-z]+|root|Users/[a-z]+)/|/tmp/(?:plan|venv)\b",
    "a word on how work is organised": r"\b[Ii]ssue (?:#)?\d|\b(?:T)ODO\b|\b(?:F)IXME\b",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_nothing_speaks_of(what):
    pattern = re.compile(FORBIDDEN[what])
    found = []
    for path in text_files():
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            if pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}")
    assert found == []


def test_the_patterns_find_what_they_are_for():
    examples = {
        "a package registry's host": "https://py" + "pi.org/simple",
        "a path of a machine": "see /wo" + "rk/main",
        "a word on how work is organised": "as iss" + "ue 2 says",
    }
    for what, line in examples.items():
        assert re.search(FORBIDDEN[what], line), what
