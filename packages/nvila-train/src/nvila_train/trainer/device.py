"""Where a run computes, and how batches get there.

``auto`` takes a CUDA device if there is one: that of the process's number on its machine (``LOCAL_RANK``, which
``torchrun`` sets). Products of float32 matrices stay in float32: TF32 is switched off, so that ``fp32`` means the same
on every device.
"""

import os
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

DeviceName = Literal["auto", "cpu", "cuda"]


class DeviceError(ValueError):
    """A device that is not there."""


def chosen(name: DeviceName = "auto") -> torch.device:
    """The device of this process. Raises: DeviceError."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not count):
        return torch.device("cpu")
    number = int(os.environ.get("LOCAL_RANK", "0"))
    if number >= count:
        raise DeviceError(
            f"process {number} of this machine needs a CUDA device of its own, there are {count}: "
            f"start at most {count} processes, or use --device cpu"
        )
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def placed(value: Any, device: torch.device) -> Any:
    """A batch with all its tensors on a device: dataclasses, tuples, lists and mappings are gone through.

    Copies to a GPU start from pinned memory and do not wait for each other.
    """
    if device.type == "cpu":
        return value
    if isinstance(value, Tensor):
        if value.device == device:
            return value
        pinned = value.pin_memory() if device.type == "cuda" and value.device.type == "cpu" else value
        return pinned.to(device, non_blocking=True)
    if is_dataclass(value) and not isinstance(value, type):
        before = {each.name: getattr(value, each.name) for each in fields(value) if each.init}
        after = {name: placed(each, device) for name, each in before.items()}
        moved = {name: each for name, each in after.items() if each is not before[name]}
        return replace(value, **moved) if moved else value
    if isinstance(value, (list, tuple)):
        made = [placed(each, device) for each in value]
        same = all(new is old for new, old in zip(made, value, strict=True))
        return value if same else type(value)(made)
    if isinstance(value, Mapping):
        return {name: placed(each, device) for name, each in value.items()}
    return value
