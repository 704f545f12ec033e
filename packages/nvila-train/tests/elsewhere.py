"""A device that is not there: its tensors compute on the CPU, but refuse to meet those of the CPU.

torch's ``meta`` device lends its name, since autograd knows it everywhere. As on a GPU, an operation may mix in a
number (a tensor without dimensions) of the CPU and index by one of its tensors; all else is the error of a GPU.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

ELSEWHERE = torch.device("meta")

aten = torch.ops.aten
MOVES = {aten._to_copy.default, aten.copy_.default}
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}


class Far(Tensor):
    """A tensor of the device; ``near`` holds its numbers."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> "Far":
        self = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, near.shape, strides=near.stride(), storage_offset=near.storage_offset(), dtype=near.dtype,
            device=ELSEWHERE,
        )  # fmt: skip
        self.near = near
        return self

    def tolist(self) -> Any:
        return self.near.tolist()

    def __repr__(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return f"Far({self.near})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class Elsewhere(TorchDispatchMode):
    """New tensors that ask for the device get there."""

    def __torch_dispatch__(self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    far = [each for each in tensors if isinstance(each, Far)]
    near = [each for each in tensors if not isinstance(each, Far) and each.ndim]
    if func in INDEXING:
        near = [each for each in near if each is args[0] or (len(args) > 2 and each is args[2])]
    if far and near and func not in MOVES:
        shapes = [list(each.shape) for each in near]
        raise RuntimeError(f"{func} met tensors of the CPU, of shapes {shapes}, on another device")
    asked = kwargs.get("device")
    there = bool(far) if asked is None else torch.device(asked).type == ELSEWHERE.type
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if func is aten.copy_.default:
        args[0].near.copy_(plain(args[1])) if isinstance(args[0], Far) else args[0].copy_(plain(args[1]))
        return args[0]
    out = func(*tree_map(plain, args), **tree_map(plain, kwargs))
    known = {id(each.near): each for each in far}

    def named(tensor: Tensor) -> Tensor:
        if id(tensor) in known:
            return known[id(tensor)]
        return Far(tensor) if there else tensor

    return tree_map_only(Tensor, named, out)


def plain(value: Any) -> Any:
    return value.near if isinstance(value, Far) else value


class Literals(TorchFunctionMode):
    """``torch.tensor`` makes its tensor where it is asked to; on ``meta`` the numbers would be gone."""

    def __torch_function__(self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        device = given.pop("device", None) if func is torch.tensor else None
        out = func(*args, **given)
        return out if device is None else out.to(device)


@contextmanager
def elsewhere() -> Iterator[torch.device]:
    """The device, while the context lasts."""
    with Elsewhere(), Literals():
        yield ELSEWHERE
