"""The reference's cases as test parameters.

A test that takes ``golden_case`` runs once for each case of the kinds in its module's ``KINDS``; a test that
takes ``golden_checkpoint`` once for each checkpoint. Nothing here knows a size, an id or a name of the data.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from nvila_model import NVILA, Image, Parity, Video
from safetensors.torch import load_file


@dataclass(frozen=True)
class Case:
    """Inputs and outputs of the reference for one prompt, batch, list of images or training batch."""

    path: Path

    @cached_property
    def facts(self) -> dict[str, Any]:
        return json.loads(self.path.read_text(encoding="utf-8"))

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        return load_file(self.path.with_suffix(".safetensors"))

    @property
    def kind(self) -> str:
        return self.facts.get("kind", "")

    @property
    def root(self) -> Path:
        return self.path.parent.parent.parent

    @property
    def prompts(self) -> list[list[dict[str, str]]]:
        return self.facts["prompts"] if "prompts" in self.facts else [self.facts["prompt"]]

    @property
    def conversations(self) -> list[list[dict[str, Any]]]:
        """The prompts as chat messages."""
        return [[{"role": "user", "content": [self.part(part) for part in prompt]}] for prompt in self.prompts]

    def part(self, part: dict[str, str]) -> str | Image | Video:
        if "image" in part:
            return Image(self.root / part["image"])
        return Video(self.root / part["video"]) if "video" in part else part["text"]

    @property
    def parity(self) -> Parity:
        """Which of the reference's oddities the case was made with, read off its inputs and outputs."""
        media = self.facts.get("media", {})
        images = max((sum("image" in part for part in prompt) for prompt in self.prompts), default=0)
        videos = sum("video" in part for prompt in self.prompts for part in prompt)
        tiled = "as in training" in self.facts["note"]
        return Parity(
            one_tile_for_several_images=images > 1 and not tiled,
            video_as_images=bool(videos) and "video" not in media,
        )


def found_cases(config: pytest.Config) -> list[Case]:
    folder: Path = config.getoption("--golden")
    return [case for path in sorted(folder.glob("cases/*/*.json")) if (case := Case(path)).kind]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_case" in metafunc.fixturenames:
        cases = [case for case in found_cases(metafunc.config) if case.kind in metafunc.module.KINDS]
        names = [f"{case.path.parent.name}-{case.path.stem}" for case in cases]
        parametrize(metafunc, "golden_case", dict(zip(names, cases, strict=True)))
    if "golden_checkpoint" in metafunc.fixturenames:
        folder: Path = metafunc.config.getoption("--golden")
        folders = sorted(path.parent for path in folder.glob("checkpoints/*/config.json"))
        parametrize(metafunc, "golden_checkpoint", {path.name: path for path in folders})

    if "lite_case" in metafunc.fixturenames:
        cases = sorted(metafunc.config.getoption("--golden").glob("hf_lite/cases/*.json"))
        parametrize(metafunc, "lite_case", {path.stem: path for path in cases})


def parametrize(metafunc: pytest.Metafunc, argument: str, values: dict[str, Any]) -> None:
    """One run for each value; where there is none, one that is skipped and says why."""
    folder = metafunc.config.getoption("--golden")
    absent = pytest.mark.skip(reason=f"no reference values at {folder}: pass --golden DIR")
    cases = [pytest.param(value, id=name) for name, value in values.items()]
    metafunc.parametrize(argument, cases or [pytest.param(None, marks=absent)])


@pytest.fixture(scope="session")
def loaded(golden: Path) -> Callable[..., NVILA]:
    """Load the model of a case as the reference ran it, once for all cases that agree."""
    models: dict[str, NVILA] = {}

    def load(case: Case, **parity: bool) -> NVILA:
        options = case.parity if not parity else Parity(**parity)
        overrides, length = case.facts["config_overrides"], case.facts.get("load_model_max_length")
        key = repr((case.path.parent.name, overrides, length, options))
        if key not in models:
            models[key] = NVILA.from_pretrained(
                case.root / "checkpoints" / case.path.parent.name,
                config_overrides=overrides,
                model_max_length=length,
                parity=options,
            )
        return models[key]

    return load
