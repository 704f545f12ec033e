"""The folder of a run: who makes it, what it was made with, and what is left when a run fails before it has learnt.

    <out>/recipe.toml    the recipe as it was given
    <out>/data.json      what the files of its data looked like

The first process makes the folder and all others wait for its word, so that a fresh start of several processes does not
find the folder that one of them has just made. A folder without any state is no run: what a failed start left is
removed, and what a killed one left is begun anew.
"""

import hashlib
import json
import shutil
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from nvila_train.recipe import Recipe
from nvila_train.recipe_errors import RecipeError
from nvila_train.trainer import distributed

RECIPE: Final = "recipe.toml"
DATA: Final = "data.json"
FIRST: Final = (RECIPE, DATA, "tokenizer", "tensorboard")
"""What a run has before its first state, besides its stages' folders."""

OF_STAGE: Final = ("state", "log.jsonl", "log.jsonl.new")
"""What a stage's folder may hold."""

WHOLE: Final = 64 * 2**20
"""Bytes of a file up to which all of it is compared; of larger ones both ends of this size, and the time of change."""


class RunFolder:
    """The folder of a run, while it runs.

    Args:
        out: the folder.
        recipe: file of the recipe.
        resume: go on with what is there.
        say: called with a sentence for each thing that is not as it was when the run began.

    Raises: RecipeError, in all processes, if the folder holds a run and is not to be resumed.
    """

    def __init__(self, out: Path, recipe: Path, *, resume: bool, say: Callable[[str], None] = lambda _: None) -> None:
        self.out, self.recipe, self.resume, self.say = out, recipe, resume, say
        self.fresh = False

    def __enter__(self) -> "RunFolder":
        refusal = distributed.agreed(self._open() if distributed.rank() == 0 else None)
        if refusal is not None:
            raise RecipeError(refusal)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self.fresh and not has_learnt(self.out):
            shutil.rmtree(self.out, ignore_errors=True)

    def _open(self) -> str | None:
        """Make the folder, or say what has changed in it; a sentence if it cannot be used."""
        out = self.out
        if out.exists() and not out.is_dir():
            return f"{out} is a file: choose another --out"
        if out.exists() and not self.resume:
            if any(out.iterdir()) and not is_unborn(out):
                return f"{out} exists: add --resume to go on with it, or choose another --out"
            for path in out.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
        self.fresh = not out.exists()
        now = fingerprints(self.recipe)
        if self.resume and (out / RECIPE).is_file():
            for change in (*recipe_changes(out / RECIPE, self.recipe), *data_changes(out / DATA, now)):
                self.say(f"changed since the run began: {change}")
        try:
            out.mkdir(parents=True, exist_ok=True)
            if not (out / RECIPE).exists() or not self.recipe.samefile(out / RECIPE):
                shutil.copyfile(self.recipe, out / RECIPE)
            (out / DATA).write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            return f"cannot write to {out}: {error.strerror or error}: choose another --out"
        return None


def has_learnt(out: Path) -> bool:
    """Whether a run has left anything that took steps: a state, a model or an adapter."""
    kept = (*out.glob("*/state/*/.metadata"), *out.glob("*/state.pt"), out / "model", out / "adapter")
    return any(path.exists() for path in kept)


def is_unborn(out: Path) -> bool:
    """Whether a folder holds what a run makes before its first state, and nothing else."""
    if has_learnt(out) or not (out / RECIPE).is_file():
        return False
    others = [path for path in out.iterdir() if path.name not in FIRST]
    return all(path.is_dir() and {inside.name for inside in path.iterdir()} <= {*OF_STAGE} for path in others)


def recipe_changes(before: Path, now: Path) -> Iterator[str]:
    """Each field that two recipes say differently, defaults included."""
    tables: list[dict[str, Any]] = []
    for path in (before, now):
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
            tables.append(dict(flat(Recipe.model_validate(table).model_dump(mode="json"))))
        except (OSError, ValueError):
            yield f"{path} cannot be compared"
            return
    first, second = tables
    for name in dict.fromkeys((*first, *second)):
        if first.get(name) != second.get(name):
            yield f"{name} was {json.dumps(first.get(name))}, is {json.dumps(second.get(name))}"


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """All leaves of a nested value under dotted names."""
    if isinstance(value, dict):
        for key, inside in value.items():
            yield from flat(inside, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for place, inside in enumerate(value):
            yield from flat(inside, f"{name}.{place}")
    else:
        yield name, value


def data_changes(path: Path, now: dict[str, str]) -> Iterator[str]:
    """Each file of data that is not what it was."""
    if not path.is_file():
        return
    try:
        before: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        yield f"{path} cannot be read, so that data cannot be compared"
        return
    for name, mark in now.items():
        if name in before and before[name] != mark:
            yield f"the data in {name}"


def fingerprints(recipe: Path) -> dict[str, str]:
    """What tells whether a file of data has changed, by its path; sources that are no single file are not told."""
    loaded = Recipe.read(recipe)
    paths = (Path(source.path) for stage in loaded.stage for source in stage.data if not source.remote)
    return {str(path): fingerprint(path) for path in paths if path.is_file()}


def fingerprint(path: Path) -> str:
    """Size and digest of a file, of a large one only of its ends and time of change."""
    facts = path.stat()
    hashed = hashlib.sha256(str(facts.st_size).encode())
    with path.open("rb") as file:
        hashed.update(file.read(WHOLE))
        if facts.st_size > WHOLE:
            file.seek(max(WHOLE, facts.st_size - WHOLE))
            hashed.update(file.read(WHOLE) + str(facts.st_mtime_ns).encode())
    return hashed.hexdigest()
