"""Adapters on disk, in PEFT's layout: ``adapter_config.json`` and ``adapter_model.safetensors``.

Names in the file are the model's own behind ``base_model.model.``; ``lora_A`` and ``lora_B`` stand for what is
added to a weight, all other names for what replaces one. ``peft`` reads such a folder, and ``nvila ask --adapter``
and ``NVILA.from_pretrained(adapter=...)`` do.
"""

from pathlib import Path
from typing import Any, Final

from nvila_model import NVILA
from safetensors.torch import save_file
from torch import nn

from nvila_train.tuning.prepare import ADAPTER, TuningError, is_tuned, tuned_parameters

WEIGHTS: Final = "adapter_model.safetensors"
PREFIX: Final = "base_model.model."


def save_adapter(model: NVILA, folder: str | Path, *, base: str | None = None) -> None:
    """Write what a tuned model has learnt.

    Args:
        base: name of the checkpoint that was tuned, to be written down.

    Raises: TuningError if the model was not prepared with ``tune``.
    """
    tensors = {PREFIX + published(name): value.detach().contiguous() for name, value in learning(model).items()}
    owner: Any = model
    config = owner.peft_config[ADAPTER]
    config.base_model_name_or_path = base
    config.inference_mode = True
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    save_file(tensors, folder / f".{WEIGHTS}.part", metadata={"format": "pt"})
    (folder / f".{WEIGHTS}.part").replace(folder / WEIGHTS)


def learning(model: NVILA) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name. Raises: TuningError if the model was not prepared with ``tune``."""
    if not is_tuned(model):
        raise TuningError("the model has no adapter: prepare it with tune(model, ...)")
    return tuned_parameters(model)


def published(name: str) -> str:
    """A parameter's name in the file: without the name that ``peft`` gives the adapter in memory."""
    return name.replace(f".{ADAPTER}.", ".")
