"""AdamW without weight decay, Muon for matrices where asked, and the learning rate over a run.

Sources: NVILA, appendix (training recipe): AdamW, no weight decay, cosine, 3 % linear warm-up. Muon: Keller Jordan et
al., "Muon: an optimizer for hidden layers in neural networks" (2024), as torch has it, its steps scaled to the size of
AdamW's.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from math import cos, pi
from typing import Any

import torch
from torch import Tensor, nn

from nvila_train.trainer.rounded import RoundedAdamW

BETAS = (0.9, 0.98)
"""Decays of AdamW's means."""

EPS = 1e-8
"""What AdamW adds to the root of a mean square."""

WARM_UP = 0.03
"""Share of a run in which the learning rate rises."""


def rate_factor(step: int, steps: int, *, warm_up: float = WARM_UP, floor: float = 0.0) -> float:
    """The factor on the learning rate at ``step`` of ``steps``.

    ``(step + 1) / w`` for the first ``w = ceil(warm_up * steps)`` steps, then
    ``floor + (1 - floor) * (1 + cos(pi * t)) / 2`` with ``t`` from 0 to 1 over the rest.

    Raises: ValueError if the step is not in the run.
    """
    if not 0 <= step < steps:
        raise ValueError(f"step {step} is not in a run of {steps} steps: count from 0 to {steps - 1}")
    rising = -int(-warm_up * steps // 1)
    if step < rising:
        return (step + 1) / rising
    passed = (step - rising) / max(1, steps - rising)
    return floor + (1 - floor) * (1 + cos(pi * passed)) / 2


class Optimizers:
    """AdamW, and Muon beside it for the groups that ask for it, used as one optimizer.

    Trained from nothing, a small tower reads as well after 2 minutes of Muon as after 5 of AdamW.

    Args:
        groups: parameter groups with their ``lr``, remembered as the ``peak`` of the schedule; those with ``muon`` true
            hold matrices only. Parameters in bfloat16 are moved with ``RoundedAdamW``.
        seed: of its rounding.

    Raises: ValueError for a group of Muon's in bfloat16.
    """

    def __init__(self, groups: Iterable[Mapping[str, Any]], *, seed: int = 0) -> None:
        listed = [{**group, "peak": group["lr"]} for group in groups]
        muon = [group for group in listed if group.get("muon")]
        rest = [group for group in listed if not group.get("muon")]
        adam, small = (list(of_kind(rest, small=small)) for small in (False, True))
        if any(of_kind(muon, small=True)):
            raise ValueError("Muon would lose small steps in bfloat16: keep its matrices in float32, or use AdamW")
        self.members: list[torch.optim.Optimizer] = []
        if small:
            self.members.append(RoundedAdamW(small, seed=seed, betas=BETAS, eps=EPS))
        if adam:
            fused = fusible([parameter for group in adam for parameter in group["params"]])
            self.members.append(torch.optim.AdamW(adam, weight_decay=0.0, betas=BETAS, eps=EPS, fused=fused))
        if muon:
            self.members.append(torch.optim.Muon(muon, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"))

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all members."""
        return list(chain.from_iterable(member.param_groups for member in self.members))

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Every parameter that is trained."""
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def set_rates(self, factor: float) -> None:
        """Give every group ``factor`` times its peak learning rate."""
        for group in self.param_groups:
            group["lr"] = group["peak"] * factor

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for member in self.members:
            member.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Move every parameter once."""
        for member in self.members:
            member.step()

    def state_dict(self) -> list[dict[str, Any]]:
        """The members' states, in order."""
        return [member.state_dict() for member in self.members]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Read states back; peak rates stay those of this object, should the recipe have changed."""
        peaks = [group["peak"] for group in self.param_groups]
        for member, state in zip(self.members, states, strict=True):
            member.load_state_dict(state)
        for group, peak in zip(self.param_groups, peaks, strict=True):
            group["peak"] = peak

    def place(self, parameters: Mapping[str, nn.Parameter], state: Mapping[str, Tensor]) -> None:
        """Take over what was remembered of parameters, ``state`` by ``<parameter>.<what>``; others begin anew."""
        owners = {id(p): member for member in self.members for group in member.param_groups for p in group["params"]}
        for name, value in state.items():
            parameter_name, _, what = name.rpartition(".")
            parameter = parameters[parameter_name]
            owner = owners.get(id(parameter))
            if owner is not None:
                stays = what == "step" and not owner.defaults.get("fused")  # plain AdamW counts on the CPU
                owner.state[parameter][what] = value if stays else value.to(parameter.device)


def of_kind(groups: Iterable[Mapping[str, Any]], *, small: bool) -> Iterator[dict[str, Any]]:
    """The groups with their parameters in bfloat16 alone, or with all others; none that would be empty."""
    for group in groups:
        chosen = [parameter for parameter in group["params"] if (parameter.dtype == torch.bfloat16) == small]
        if chosen:
            yield {**group, "params": chosen}


def clipped(parameters: Sequence[nn.Parameter], limit: float) -> Tensor:
    """Scale all gradients down to a norm of ``limit`` if theirs is larger; returns theirs, summed up in float32."""
    norms = [
        torch.linalg.vector_norm(parameter.grad, dtype=torch.float32)
        for parameter in parameters
        if parameter.grad is not None
    ]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm


def fusible(parameters: Sequence[nn.Parameter]) -> bool:
    """Whether torch can move all of these in one pass over memory."""
    return all(parameter.device.type in ("cpu", "cuda") and parameter.is_floating_point() for parameter in parameters)
