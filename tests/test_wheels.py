"""Each wheel builds, and works alone: in an empty environment with nothing but what it declares.

The environment gets the locked versions of the package's declared dependencies, hard-linked from uv's cache, then the
wheels built here. ``uv pip check`` holds the wheel's own metadata against what is there.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SIBLINGS = {
    "tiling": [],
    "compress": [],
    "kernels": [],
    "model": ["tiling", "compress", "kernels"],
    "train": ["tiling", "compress", "kernels", "model"],
}
WITHOUT_TRITON = "import sys; sys.modules['triton'] = None\n"
IMPORT_ALL = """
import importlib, pkgutil, sys
from importlib.metadata import distribution
from importlib.util import find_spec
package = importlib.import_module(sys.argv[1])
names = [found.name for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
names = [name for name in names if not name.endswith("__main__")]
if sys.modules.get("triton", package) is None:
    names = [name for name in names if ".triton" not in name]
if find_spec("numba") is None:
    compiled = (".compiled.",)
    names = [name for name in names if not any(part in name for part in compiled)]
for name in names:
    importlib.import_module(name)
for script in distribution(sys.argv[1].replace("_", "-")).entry_points:
    assert callable(script.load())
print(package.__file__)
"""


@pytest.fixture(scope="module")
def uv() -> str:
    found = os.environ.get("UV") or shutil.which("uv")
    if found is None:
        pytest.skip("uv is not installed: pip install uv")
    return found


def call(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    """What a command prints, with nothing of this environment but its paths; its words are shown if it fails."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(command, cwd=cwd, env=kept | environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command[:4]))} ...\n{done.stdout}{done.stderr}"
    return done.stdout


def offline_first(*command: str | Path, **environment: str) -> str:
    """What uv has in its cache needs no network; a build of another machine may need one."""
    try:
        return call(*command, "--offline", **environment)
    except AssertionError:
        return call(*command, **environment)


@pytest.fixture(scope="module")
def wheels(uv: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    offline_first(uv, "build", "--quiet", "--wheel", "--all-packages", "--out-dir", folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("alone")


@pytest.fixture
def environment(place: Path) -> Iterator[Path]:
    """Where an environment goes: always the same path, so that torch is compiled to bytecode once, then removed."""
    yield place / "environment"
    shutil.rmtree(place / "environment", ignore_errors=True)


def wheel(folder: Path, name: str) -> Path:
    (found,) = folder.glob(f"nvila_{name}-*.whl")
    return found


@pytest.mark.parametrize("name", SIBLINGS)
def test_holds_what_it_should(wheels: Path, name: str) -> None:
    """The typed marker and every file of the source, and no tests."""
    source = ROOT / "packages" / f"nvila-{name}" / "src"
    tracked = call("git", "ls-files", "src", cwd=source.parent).split() if shutil.which("git") else []
    inside = set(zipfile.ZipFile(wheel(wheels, name)).namelist())
    assert f"nvila_{name}/py.typed" in inside
    assert {file.removeprefix("src/") for file in tracked if (source.parent / file).is_file()} <= inside
    assert not [file for file in inside if file.startswith("tests/")]


@pytest.mark.parametrize("name", SIBLINGS)
def test_works_alone(uv: str, wheels: Path, name: str, environment: Path) -> None:
    offline_first(
        *(uv, "sync", "--quiet", "--frozen", "--no-dev", "--no-install-workspace", "--python", sys.executable),
        *("--package", f"nvila-{name}"),
        UV_PROJECT_ENVIRONMENT=str(environment),
    )
    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    own = [wheel(wheels, each) for each in (name, *SIBLINGS[name])]
    call(uv, "pip", "install", "--quiet", "--offline", "--no-deps", "--python", python, *own)
    call(uv, "pip", "check", "--python", python)
    settings = {"CUDA_VISIBLE_DEVICES": "", "PYTHONPYCACHEPREFIX": str(environment.parent / "bytecode")}
    script = WITHOUT_TRITON + IMPORT_ALL
    where = call(python, "-c", script, f"nvila_{name}", cwd=environment.parent, **settings)
    assert Path(where.strip()).is_relative_to(environment)
    if name == "kernels":
        call(python, "-c", IMPORT_ALL, "nvila_kernels", cwd=environment.parent, **settings)
