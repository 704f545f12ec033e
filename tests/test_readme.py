"""What the READMEs and the docs show is there and works.

Python blocks: the imports of every block, and the whole of a block that ``<!-- run -->`` stands before. Commands: those
that ask a question in the README. Files: whatever they name or link to.
"""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted(ROOT.glob("packages/*/README.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
]
BLOCK = re.compile(r"(<!-- run -->\n)?^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"(?<![\w./-])((?:benchmarks|examples|docs|tests)/[\w./-]*\w|\.ci/run)")
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[tuple[str, bool]]:
    """The code of a page's blocks in a language, and whether it is marked to be run."""
    return [(code, bool(mark)) for mark, kind, code in BLOCK.findall(page.read_text()) if kind == language]


PYTHON = [
    pytest.param(code, run, id=f"{label(page)}-{number}")
    for page in PAGES
    for number, (code, run) in enumerate(blocks(page, "python"))
]
ASKING = re.compile(r"uv run (?:--no-dev )?(nvila ask .*?)(?:   #.*)?$", re.MULTILINE)
ASKED = [
    pytest.param(command, id=f"{label(page)}-{number}")
    for page in PAGES
    for number, command in enumerate(ASKING.findall("".join(code for code, _ in blocks(page, "bash"))))
]


@pytest.mark.parametrize(("code", "run"), PYTHON)
def test_python(code: str, run: bool) -> None:
    tree = ast.parse(code)
    if not run:
        tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    exec(compile(tree, "<page>", "exec"), {"__name__": "page"})


@pytest.mark.parametrize("command", ASKED)
def test_asking(command: str) -> None:
    """The first thing that a newcomer types: an answer, and nothing else on standard output."""
    program, *words = shlex.split(command)
    script = Path(sys.executable).parent / program
    done = subprocess.run([script, *words], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_a_front_page_begins_with_a_question(page: str) -> None:
    """Its first command installs what answering needs, and none of the tools that this project is made with."""
    first = blocks(ROOT / page, "bash")[0][0].splitlines()[0]
    assert first.startswith("pip install uv && uv run --no-dev nvila ask ")


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_named_files_are_there(page: Path) -> None:
    """Named from the project's root, or from the package that the page is about."""
    text, package = page.read_text(), ROOT / "packages" / f"nvila-{page.stem}"
    bases = [ROOT, page.parent, package]
    missing = {name for name in NAMED.findall(text) if not any((base / name).exists() for base in bases)}
    missing |= {link for link in LINK.findall(text) if not (page.parent / link).exists()}
    assert not missing
