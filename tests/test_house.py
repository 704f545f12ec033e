"""The house itself: who may import whom, what is public, and that siblings agree on their versions."""

import ast
import importlib
import importlib.util
import pkgutil
import re
import sys
import tomllib
from collections import Counter
from functools import cache
from importlib.metadata import packages_distributions
from inspect import isclass, isfunction
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PACKAGES = {name: ROOT / "packages" / f"nvila-{name}" for name in ("tiling", "compress", "kernels", "model", "train")}
MAY_IMPORT = {
    "tiling": set(),
    "compress": set(),
    "kernels": set(),
    "model": {"tiling", "compress", "kernels"},
    "train": {"tiling", "compress", "kernels", "model"},
}

PUBLIC = {
    module: names.split() for module, names in tomllib.loads((ROOT / "tests/public_names.toml").read_text()).items()
}
"""Every public name, by the module that has it in its ``__all__``."""

MODEL_FLOORS = (
    "config lazy parity",
    "presets inputs",
    "network",
    "parts",
    "generation checkpoint quantization cpu estimate",
    "nvila",
    "serve cli",
)
"""Modules and folders of ``nvila_model``, the lowest first; each may import its own floor and those below."""

MOST_MODULES = 14
"""Of one folder, ``__init__`` not counted."""

LONGEST_MODULE = 350


def project(name: str) -> dict:
    return tomllib.loads((PACKAGES[name] / "pyproject.toml").read_text())["project"]


@cache
def sources(name: str) -> list[tuple[Path, ast.Module]]:
    return [(path, ast.parse(path.read_text())) for path in sorted(PACKAGES[name].glob("src/**/*.py"))]


def imported(name: str) -> set[str]:
    """The top-level modules that a package's source names in any import, wherever it stands."""
    found = set()
    for _, tree in sources(name):
        for node in ast.walk(tree):
            modules = [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found |= {module.split(".")[0] for module in modules}
    return found - {f"nvila_{name}"}


def module_of(path: Path) -> str:
    parts = path.relative_to(next(parent for parent in path.parents if parent.name == "src")).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_of(path) for name in PACKAGES for path in PACKAGES[name].glob("src/**/*.py")}


def imported_names(tree: ast.AST, folder: str = "") -> set[str]:
    """Everything that a file names in an import, wherever it stands, with the dots of its module.

    ``folder`` is the dotted name of the package that the file is in, from where its relative imports count.
    """
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            above = folder.split(".")[: folder.count(".") + 2 - node.level] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@cache
def imports(name: str) -> dict[str, set[str]]:
    """The modules that each module of a package imports of it."""
    graph = {}
    for path, tree in sources(name):
        module = module_of(path)
        folder = module if path.name == "__init__.py" else module.rpartition(".")[0]
        named = {each if each in MODULES else each.rpartition(".")[0] for each in imported_names(tree, folder)}
        graph[module] = {each for each in named & MODULES if each.startswith(f"nvila_{name}")}
    return graph


def strongly_connected(graph: dict[str, set[str]]) -> list[set[str]]:
    """The groups of modules of which each reaches each."""

    def reached(start: str) -> set[str]:
        seen, open_ = set(), [start]
        while open_:
            for other in graph[open_.pop()] - seen:
                seen.add(other)
                open_.append(other)
        return seen

    reach = {module: reached(module) for module in graph}
    circles = {frozenset(m for m in reach[module] if module in reach[m]) for module in graph if module in reach[module]}
    return [set(circle) for circle in circles]


def foreign_names(tree: ast.AST, own: str = "") -> set[str]:
    """What a file imports of our packages, but for its own."""
    packages = {f"nvila_{name}" for name in PACKAGES} - {own}
    return {each for each in imported_names(tree) if each.split(".")[0] in packages}


def public_names() -> set[str]:
    return {*PUBLIC, *(f"{module}.{name}" for module, names in PUBLIC.items() for name in names)}


def siblings(name: str) -> set[str]:
    return {sibling for sibling in PACKAGES if f"nvila_{sibling}" in imported(name)}


def declared(name: str) -> dict[str, Requirement]:
    """What a package depends on, its extras included, by distribution."""
    extras = project(name).get("optional-dependencies", {}).values()
    lines = [*project(name)["dependencies"], *(line for extra in extras for line in extra)]
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}


@pytest.mark.parametrize("name", PACKAGES)
def test_arrows_only_point_up(name: str):
    assert siblings(name) <= MAY_IMPORT[name]


@pytest.mark.parametrize("name", PACKAGES)
def test_no_modules_import_each_other(name: str):
    """Imports inside functions and for type checkers count too."""
    assert not strongly_connected(imports(name))


@pytest.mark.parametrize("name", PACKAGES)
def test_only_public_names_cross_packages(name: str):
    """A package imports of another what stands in an ``__all__`` of its public modules."""
    inner = {each for _, tree in sources(name) for each in foreign_names(tree, own=f"nvila_{name}")} - public_names()
    assert not inner


def test_docs_and_examples_import_public_names_only():
    found = {}
    for file in (*ROOT.glob("docs/**/*.md"), *ROOT.glob("*.md"), *ROOT.glob("packages/*/README.md")):
        blocks = re.findall(r"```python\n(.*?)```", file.read_text(encoding="utf-8"), flags=re.DOTALL)
        found[file] = {each for block in blocks for each in foreign_names(ast.parse(block))}
    for file in ROOT.glob("examples/*.py"):
        found[file] = foreign_names(ast.parse(file.read_text(encoding="utf-8")))
    inner = {f"{file.relative_to(ROOT)}: {each}" for file, names in found.items() for each in names - public_names()}
    assert not inner


def test_floors_of_the_model():
    floors = {top: number for number, line in enumerate(MODEL_FLOORS) for top in line.split()}
    rising = {
        f"{module} -> {other}"
        for module, others in imports("model").items()
        for other in others
        if module.count(".") and floors[module.split(".")[1]] < floors[other.split(".")[1]]
    }
    assert not rising


@pytest.mark.parametrize("name", PACKAGES)
def test_a_folder_fits_in_a_head(name: str):
    counts = Counter(str(path.parent.relative_to(ROOT)) for path, _ in sources(name) if path.name != "__init__.py")
    assert not {f for f, count in counts.items() if count > MOST_MODULES}


@pytest.mark.parametrize("name", PACKAGES)
def test_a_name_has_one_module(name: str):
    """But a command may be named for what it calls, and a backend's file for its op."""
    paths = [path for path, _ in sources(name) if path.name != "__init__.py" and "cli" not in path.parts]
    ops = {path.stem for path in paths if path.parent.name == "ops"}
    named = Counter(path.stem for path in paths if path.parent.name not in ("triton", "cpu") or path.stem not in ops)
    twice = {f"{name}: {stem}" for stem, count in named.items() if count > 1}
    assert not twice


@pytest.mark.parametrize("name", PACKAGES)
def test_what_is_imported_is_declared(name: str):
    """Nothing is used that only happens to be there because another package wants it."""
    distributions = packages_distributions()
    foreign = imported(name) - sys.stdlib_module_names
    missing = {
        module
        for module in foreign
        if not {canonicalize_name(owner) for owner in distributions.get(module, [module])} & declared(name).keys()
    }
    assert not missing, f"nvila-{name} imports {sorted(missing)}: declare them in its pyproject.toml, with a floor"


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_frozen(name: str):
    module = importlib.import_module(name)
    assert sorted(module.__all__) == sorted(PUBLIC[name])
    values = {public: getattr(module, public) for public in module.__all__}
    assert not [
        public for public, value in values.items() if (isclass(value) or isfunction(value)) and not value.__doc__
    ]
    assert set(module.__all__) <= set(dir(module))


@pytest.mark.parametrize("name", PUBLIC)
def test_a_module_does_not_hide_a_public_name(name: str):
    """``package.load`` would be the module once ``package/load.py`` was imported, and the function before."""
    module = importlib.import_module(name)
    inside = {child.name for child in pkgutil.iter_modules(getattr(module, "__path__", []))}
    bound = {public for public, value in vars(module).items() if not isinstance(value, ModuleType)}
    hidden = inside & set(PUBLIC[name]) - bound if hasattr(module, "__getattr__") else set()
    assert not {f"{name}.{public}" for public in hidden}


@pytest.mark.parametrize("name", PACKAGES)
def test_a_module_fits_in_a_head(name: str):
    long = {str(path): len(path.read_text().splitlines()) for path, _ in sources(name)}
    assert not {path: lines for path, lines in long.items() if lines > LONGEST_MODULE}


@pytest.mark.parametrize("name", PACKAGES)
def test_only_the_command_line_prints(name: str):
    """A library that prints cannot be used in a pipe."""
    printing = {
        str(path)
        for path, tree in sources(name)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        if "cli" not in path.parts
    }
    assert not printing


@pytest.mark.parametrize("name", PACKAGES)
def test_siblings_are_declared_and_bounded(name: str):
    """uv does not check the bounds of workspace members, so this does."""
    for sibling in siblings(name):
        bound = declared(name)[f"nvila-{sibling}"].specifier
        version = project(sibling)["version"]
        major, minor = version.split(".")[:2]
        assert bound.contains(version)
        assert not bound.contains(f"{major}.{int(minor) + 1}.0")


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_is_whole(name: str):
    folder = PACKAGES[name]
    for file in ("README.md", "CHANGELOG.md", f"src/nvila_{name}/py.typed"):
        assert (folder / file).is_file(), file
    text = (folder / "pyproject.toml").read_text()
    dependencies = text.split("dependencies = [")[1].split("]\n")[0]
    lines = [line for line in dependencies.splitlines() if line.strip().startswith('"')]
    assert all("#" in line for line in lines), "each floor has its reason"


def test_every_package_is_type_checked():
    """A pattern that matches nothing would pass in silence, so the folders are named."""
    checked = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["basedpyright"]["include"]
    assert {ROOT / folder for folder in checked} == {*(folder / "src" for folder in PACKAGES.values()), ROOT / "proofs"}


def test_no_test_skips_in_ci():
    """Tests of an extra skip where it is not installed; the workspace's own environment lacks nothing (conftest.py)."""
    assert "uv run pytest --no-skips\n" in (ROOT / ".ci" / "run").read_text()
