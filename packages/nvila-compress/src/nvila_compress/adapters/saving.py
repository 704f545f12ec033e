"""Hosts with a compressor, saved and loaded.

The host's own ``save_pretrained`` writes the folder. Its ``config.json`` carries the compressor's description, since
that is what every way of saving a model keeps (a ``Trainer``'s checkpoints among them); ``compressor.json`` beside it
says the same for whoever looks, as peft does, and for a processor saved alone. The compressor's weights are further
keys beside the host's, whose own keys all stay: to a library that knows nothing of this one, the folder is the host
without a compressor.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from nvila_compress.adapters.linear import CompressedLinear
from nvila_compress.adapters.processor import write_description
from nvila_compress.contract import Compressor
from nvila_compress.registry import describe

FIELD = "nvila_compressor"
"""What ``config.json`` calls the description."""


class SaveWithDescription:
    """``save_pretrained`` of a host with a compressor."""

    def __init__(self, host: nn.Module, compressor: Compressor) -> None:
        self.host = host
        self.compressor = compressor

    def __call__(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        host: Any = self.host
        description = describe(self.compressor)  # now: a budget may have been set since
        setattr(host.config, FIELD, description)
        saved: Any = cast(Any, type(host)).save_pretrained(host, save_directory, *args, **kwargs)
        write_description(save_directory, description)
        return saved


class WrittenConfig:
    """A configuration as written, for a host that the installed version may not know."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.model_type = values.get("model_type")
        tower = values.get("vision_config")
        self.vision_config = WrittenConfig(cast(dict[str, Any], tower)) if isinstance(tower, dict) else None


def is_saved_with(config: Any, compressor: Compressor) -> bool:
    """Whether ``config`` is that of a folder saved with this compressor."""
    description = getattr(config, FIELD, None)
    if description is None:
        return False
    try:
        return bool(description == describe(compressor))
    except ValueError:
        return False


def load_weights(folder: str | Path, module: nn.Module, slot: str) -> None:
    """Read the weights of ``module``, which stands at ``slot``, from a folder that the host was loaded from.

    The compressor keeps the dtype that it was saved with; a linear layer takes that of the host.

    Raises: ValueError if one is missing or has another shape.
    """
    own = dict(module.state_dict(keep_vars=True))
    if isinstance(module, CompressedLinear):
        own.pop("weight")
        own.pop("bias", None)
    missing = set(own)
    for key, tensor in read_weights(folder, slot) if own else ():
        target = cast(Tensor, own[key]) if key in own else None
        if target is None:
            continue
        if target.shape != tensor.shape:
            raise ValueError(f"{slot}.{key} in {folder} is {list(tensor.shape)}, not {list(target.shape)}")
        dtype = tensor.dtype if key.startswith("compressor.") else target.dtype
        target.data = tensor.to(device=target.device, dtype=dtype)
        missing.discard(key)
    if missing:
        raise ValueError(f"{folder} lacks {slot}.{sorted(missing)[0]}: it was not saved whole")


def read_weights(folder: str | Path, slot: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a checkpoint whose key holds ``slot``, by what follows it."""
    for file in weight_files(folder):
        if file.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(file, framework="pt") as tensors:  # pyright: ignore
                for key in tensors.keys():  # pyright: ignore # noqa: SIM118
                    if f"{slot}." in key:
                        yield key.rpartition(f"{slot}.")[2], tensors.get_tensor(key)  # pyright: ignore
        else:
            for key, tensor in torch.load(file, map_location="cpu", weights_only=True).items():
                if f"{slot}." in key:
                    yield key.rpartition(f"{slot}.")[2], tensor


def weight_files(folder: str | Path) -> list[Path]:
    """The files of a checkpoint, whole or in shards. Raises: ValueError if there is none."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = find_file(folder, f"{name}.index.json", needed=False)
        if index:
            names = json.loads(Path(index).read_text())["weight_map"].values()
            return [Path(find_file(folder, shard)) for shard in sorted(set(names))]
        whole = find_file(folder, name, needed=False)
        if whole:
            return [Path(whole)]
    raise ValueError(f"{folder} has no model.safetensors: pass the folder that save_pretrained wrote")


def find_file(folder: str | Path, name: str, *, needed: bool = True) -> str:
    """A file of a local folder, or of a repository on the hub; empty if it is not there and not ``needed``."""
    path = Path(folder) / name
    if path.is_file():
        return str(path)
    if not Path(folder).is_dir():
        from transformers.utils import hub

        found = cast(Any, hub).cached_file(str(folder), name, _raise_exceptions_for_missing_entries=needed)
        if found:
            return str(found)
    if needed:
        raise ValueError(f"{folder} has no {name}: pass the folder that save_pretrained wrote")
    return ""
