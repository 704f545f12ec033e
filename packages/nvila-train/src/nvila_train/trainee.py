"""What is being trained: the model, and what helps to train it and is thrown away afterwards.

``patches`` are the linear heads of the vision tower's pretraining, ``written`` the embeddings of written-out scenes
of the language model's. All stages share one module, so that any of them can be resumed and any can follow any other.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from nvila_model import NVILA, Processor
from nvila_model.network import VisionTower
from nvila_tiling import DynamicS2
from torch import nn

from nvila_train.tuning import learnable

SCAFFOLDING: Final = ("patches", "written")
"""Parts that help to train and are thrown away."""

PARTS: Final = ("vision", "compressor", "projector", "llm", *SCAFFOLDING)
"""The parts that a stage may train, each at its own rate."""


class Trainee(nn.Module):
    """An NVILA with its scaffolding.

    Args:
        model: the NVILA.
        scaffolding: the parts of ``SCAFFOLDING``; none for a model that has learnt to see and to speak.
    """

    def __init__(self, model: NVILA, scaffolding: Mapping[str, nn.Module] | None = None) -> None:
        super().__init__()
        self.model = model
        for name in SCAFFOLDING:  # the parts are there, so that every stage finds them, and may hold nothing
            self.add_module(name, (scaffolding or {}).get(name) or nn.Identity())

    @property
    def tower(self) -> VisionTower:
        """The vision tower."""
        tower = self.model.vision
        assert isinstance(tower, VisionTower)
        return tower

    @property
    def processor(self) -> Processor:
        return self.model.needed_processor()

    @property
    def tiler(self) -> DynamicS2:
        tiler = self.processor.tiler
        assert isinstance(tiler, DynamicS2)
        return tiler

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return self.model.vision.patch_size

    @property
    def vision_blocks(self) -> tuple[nn.Module, ...]:
        """The vision tower's blocks; none where the tower is not our SigLIP."""
        tower = self.model.vision
        return tuple(tower.blocks) if isinstance(tower, VisionTower) else ()

    @property
    def tile_patches(self) -> int:
        """Patches of a tile."""
        return self.tower.side**2

    def part(self, name: str) -> nn.Module:
        """One of ``PARTS``."""
        return getattr(self if name in SCAFFOLDING else self.model, name)


def param_groups(
    trainee: Trainee, rates: Mapping[str, float], muon: Mapping[str, float] | None = None
) -> Sequence[Mapping[str, Any]]:
    """A parameter group for every part that has a rate; all else is frozen. What ``tune`` froze stays frozen.

    A compressor with weights of its own stands between tower and projector, and learns at the projector's rate unless
    it has one of its own.

    Args:
        rates: peak rate of each part that is trained.
        muon: peak rate at which Muon trains the part's matrices, in a group of their own; AdamW trains the rest.

    Raises: ValueError for a part that does not exist, has nothing to learn, or has a Muon rate and no other.
    """
    muon = dict(muon or {})
    unknown = sorted({*rates, *muon} - set(PARTS))
    if unknown:
        raise ValueError(f"no part {unknown[0]!r} to train: choose from {', '.join(PARTS)}")
    lone = sorted(set(muon) - set(rates))
    if lone:
        raise ValueError(f"part {lone[0]!r} has a Muon rate alone: give it one in rates too, for what is no matrix")
    able = {id(parameter) for parameter in learnable(trainee)}
    trainee.requires_grad_(False)
    groups: list[Mapping[str, Any]] = []
    for name, (rate, muon_rate) in with_compressor(trainee, rates, muon).items():
        part = trainee.part(name)
        learning = [parameter for parameter in parameters_of(trainee, name) if id(parameter) in able]
        for parameter in learning:
            parameter.requires_grad_(True)
        if not learning and name in rates:
            raise ValueError(f"part {name!r} has a rate, but nothing in it learns: see [tune], or leave the rate out")
        if not learning:
            continue
        matrices = [matrix for matrix in _matrices(part) if matrix.requires_grad] if muon_rate is not None else []
        known = {id(matrix) for matrix in matrices}
        rest = [parameter for parameter in learning if id(parameter) not in known]
        groups.append({"params": rest, "lr": rate, "name": name})
        if matrices:
            groups.append({"params": matrices, "lr": muon_rate, "name": f"{name} matrices", "muon": True})
    return groups


def parameters_of(trainee: Trainee, name: str) -> list[nn.Parameter]:
    """The parameters of one of ``PARTS``; a compressor that computes without weights need not be a module."""
    part: Any = trainee.part(name)
    return list(part.parameters()) if isinstance(part, nn.Module) else []


def with_compressor(
    trainee: Trainee, rates: Mapping[str, float], muon: Mapping[str, float]
) -> dict[str, tuple[float, float | None]]:
    """The rates of each part that is trained, in the order of ``PARTS``; the compressor's follow the projector's."""
    found: dict[str, tuple[float, float | None]] = {}
    for name in PARTS:
        source = name
        if name == "compressor" and name not in rates and parameters_of(trainee, name):
            source = "projector"
        if source in rates:
            found[name] = rates[source], muon.get(source)
    return found


def learning_parts(trainee: Trainee) -> str:
    """What learns and what is frozen, every weight of the model in one of the two, for people."""
    counts: dict[bool, dict[str, int]] = {True: {}, False: {}}
    for name, parameter in trainee.named_parameters():
        part = name.removeprefix("model.").partition(".")[0]
        of_kind = counts[parameter.requires_grad]
        of_kind[part] = of_kind.get(part, 0) + parameter.numel()
    learning, frozen = (
        ", ".join(f"{part} {count / 1e6:,.3g} M" for part, count in counts[kind].items()) for kind in (True, False)
    )
    return f"learning: {learning or 'nothing'}; frozen: {frozen or 'nothing'}"


def _matrices(part: nn.Module) -> list[nn.Parameter]:
    """Weights of linear layers, without any that is also an embedding."""
    tied = {id(module.weight) for module in part.modules() if isinstance(module, nn.Embedding)}
    linear = [module.weight for module in part.modules() if isinstance(module, nn.Linear)]
    return [weight for weight in linear if isinstance(weight, nn.Parameter) and id(weight) not in tied]
