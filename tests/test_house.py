"""The house itself: who may import whom, what is public, and that siblings agree on their versions."""

import ast
import importlib
import importlib.util
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

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
    "tiling": """DynamicS2 DynamicTiles Grid GridError ImageError SingleTile TilePlan TiledImage Tiler TilingError
        draw_plan image_to_tile merge_grid merge_scales split_grid tile_many tile_to_image""",
    "compress": """CDPruner Choose Compressor DART DivPrune EVS FastVID Fold GridError Merge PerceiverResampler
        PruMerge RandomChoice SpatialToChannel SpatioTemporalPool TemporalAverage ToMe TokenLearner
        UniformChoice VidCom2 VisionZip attention_received build channel_to_spatial describe
        from_description list_compressors register""",
    "kernels": """DelayedScale Int4Linear Int8Linear QuantPolicy W4A16 W8A8 available_backends awq_scales cast_fp8
        fp8_linear pack_int4 quantize_ smooth_scales unpack_int4 use_backend w4a16_linear w8a8_linear""",
    "model": """NVILA Answer BudgetError CheckpointError Image MediaError ModelInputs NVILAConfig Parity Processor
        Sampling Video count_tokens estimate_memory export_hf list_models preset""",
    "train": """ConversationDataset Packed Precision Recipe RecipeError Stage delta_loss pack param_groups prune
        train tune""",
}
"""Every public name. To change one is to change what others build on: it needs a line in the CHANGELOG too."""

LONGEST_MODULE = 350


def project(name: str) -> dict:
    return tomllib.loads((PACKAGES[name] / "pyproject.toml").read_text())["project"]


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


@pytest.mark.parametrize("name", PACKAGES)
def test_public_names_are_frozen(name: str):
    module = importlib.import_module(f"nvila_{name}")
    assert sorted(module.__all__) == sorted(PUBLIC[name].split())
    undocumented = [public for public in module.__all__ if not getattr(module, public).__doc__]
    assert not undocumented


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
    assert {ROOT / folder for folder in checked} == {folder / "src" for folder in PACKAGES.values()}


def test_nothing_is_missing_that_tests_skip_without():
    """Tests of an extra skip where it is not installed; in the workspace's own environment none may."""
    wanted = {"triton", "onnxruntime", "onnx"} if sys.platform == "linux" else {"onnxruntime", "onnx"}
    for file in (*ROOT.glob("tests/**/*.py"), *ROOT.glob("packages/*/tests/**/*.py")):
        wanted |= set(re.findall(r"importorskip\(\"(\w+)", file.read_text(encoding="utf-8")))
    assert {"transformers", "peft", "datasets", "webdataset", "pyarrow"} <= wanted
    assert [name for name in sorted(wanted) if importlib.util.find_spec(name) is None] == []
