"""The house itself: who may import whom, what is public, and that siblings agree on their versions."""

import ast
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PACKAGES = {name: ROOT / "packages" / f"nvila-{name}" for name in ("tiling", "compress", "kernels", "model", "train")}
MAY_IMPORT = {
    "tiling": set(),
    "compress": set(),
    "kernels": set(),
    "model": {"tiling", "compress", "kernels"},
    "train": {"tiling", "compress", "kernels", "model"},
}


def project(name: str) -> dict:
    return tomllib.loads((PACKAGES[name] / "pyproject.toml").read_text())["project"]


def imported(name: str) -> set[str]:
    """The siblings that a package's source names in any import."""
    found = set()
    for path in PACKAGES[name].glob("src/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found |= {module.split(".")[0] for module in modules}
    return {sibling for sibling in PACKAGES if f"nvila_{sibling}" in found} - {name}


@pytest.mark.parametrize("name", PACKAGES)
def test_arrows_only_point_up(name: str):
    assert imported(name) <= MAY_IMPORT[name]


@pytest.mark.parametrize("name", PACKAGES)
def test_siblings_are_declared_and_bounded(name: str):
    """uv does not check the bounds of workspace members, so this does."""
    declared = {requirement.name: requirement for requirement in map(Requirement, project(name)["dependencies"])}
    for sibling in imported(name):
        bound = declared[f"nvila-{sibling}"].specifier
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
