"""From files to a model, without a second copy.

The model is built on the meta device, where parameters have shapes but no memory; then each takes the tensor
that the file maps into memory. Where number format and device already fit, nothing is copied at all, except
the fused ``qkv`` of the vision tower and an embedding that has to grow.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from nvila_model.checkpoint.adapter import add_adapter
from nvila_model.checkpoint.assembly import Model, assemble
from nvila_model.checkpoint.hub import locate
from nvila_model.checkpoint.layout import open_checkpoint
from nvila_model.checkpoint.load_options import read_device, read_dtype
from nvila_model.checkpoint.names import from_published, published_names
from nvila_model.checkpoint.quantized import Accumulate, formats, place
from nvila_model.checkpoint.tensor_folder import CheckpointError, CheckpointWarning, Tensors, resized
from nvila_model.inputs.tokenizer import Tokenizer
from nvila_model.network.meta import meta_device
from nvila_model.network.vlm import VLM
from nvila_model.network.vocabulary import StoredEmbedding, StoredHead
from nvila_model.parity import Parity
from nvila_model.quantization.fused_blocks import fuse_

VOCABULARY = ("llm.embed_tokens.weight", "llm.lm_head.weight")


def load(
    name: str | Path = "nano",
    *,
    model_type: type[Model],
    dtype: torch.dtype | str | None = "auto",
    device: torch.device | str | None = "cpu",
    model_max_length: int | None = None,
    config_overrides: Mapping[str, Any] | None = None,
    parity: Parity | None = None,
    revision: str | None = None,
    offline: bool = False,
    cache_dir: str | Path | None = None,
    token: str | None = None,
    adapter: str | Path | None = None,
    stored_vocabulary: bool = False,
    accumulate: Accumulate | None = None,
) -> Model:
    """Load a checkpoint in the original or the Hugging Face layout.

    Args:
        name: ``"nano"``, a folder, or a hub repository (see ``locate`` for ``revision``, ``offline``, ``cache_dir``,
            ``token``).
        model_type: what the parts are put into, such as ``NVILA``.
        dtype: of the weights, a ``torch.dtype`` or its name. ``"auto"`` is the format that the checkpoint asks for,
            but on a CPU float32 in place of float16, and in place of bfloat16 if the processor has no instructions for
            it.
        device: where the weights go; ``"auto"`` is a GPU where there is one.
        model_max_length: context length; beyond the trained one, rotary positions are scaled linearly.
        config_overrides: replace these top-level fields of ``config.json``.
        parity: reproduce the reference's choices; see ``docs/parity.md``.
        adapter: a folder or a hub repository in PEFT's layout; it is added to the weights.
        stored_vocabulary: leave embedding and output head of a quantized language model in the number format of their
            file, and in the file, if that is on the CPU and ``dtype`` is ``"auto"``. A head of 16 bits then rounds what
            it reads to 16 bits; ``NVILA.optimize`` screens it by one of 4.
        accumulate: ``"float16"`` sums 4-bit products in float16 on the tensor cores, for ``dtype`` float16 only; by
            default as the checkpoint was quantized.

    Raises: CheckpointError, in one sentence that names the file and what was expected.
    """
    device = read_device(device)
    folder = locate(name, revision=revision, offline=offline, cache_dir=cache_dir, token=token)
    found = open_checkpoint(folder, config_overrides)
    config = found.config.model_copy(update={"llm": found.config.llm.for_length(model_max_length)})
    tokenizer = Tokenizer.from_folder(found.tokenizer, chat_template=config.chat_template)
    try:
        with meta_device():
            model = assemble(config, tokenizer, model_type=model_type, parity=parity)
    except ValueError as error:
        if config_overrides:  # the caller's own numbers may be at fault
            raise
        raise CheckpointError(f"no model can be built from {folder / 'config.json'} and its parts: {error}") from None
    quantized = formats(config)
    stored_vocabulary = stored_vocabulary and "llm" in quantized and dtype in ("auto", None) and device.type == "cpu"
    dtype = read_dtype(dtype, config, device, quantized=bool(quantized))
    used = place(model, found.tensors, config, dtype=dtype, device=device, accumulate=accumulate)
    if stored_vocabulary:
        used |= store_vocabulary(model, found.tensors, dtype=dtype)
    fill_parameters(model, found.tensors, dtype=dtype, device=device, used=used)
    fuse_(cast(nn.Module, model.vision))
    if adapter is not None:
        add_adapter(model, locate(adapter, offline=offline, cache_dir=cache_dir, token=token))
    return model.eval()


def store_vocabulary(model: VLM, tensors: Tensors, *, dtype: torch.dtype) -> set[str]:
    """Embedding and head as they are in the file; the names of their tensors."""
    rows = model.llm.vocab_size
    sources = [source for name in VOCABULARY for source in published_names(name)]
    embedding, head = (sources[0], sources[0] if model.llm.lm_head is None else sources[1])
    check(VOCABULARY[0], embedding, model.llm.embed_tokens.weight, tensors, pieces=1)
    check(VOCABULARY[1], head, model.llm.embed_tokens.weight, tensors, pieces=1)
    model.llm.embed_tokens = StoredEmbedding(resized(tensors[embedding], rows), dtype=dtype)
    model.llm.lm_head = cast(nn.Linear, StoredHead(resized(tensors[head], rows)))
    return set(sources)


def fill_parameters(
    model: VLM, tensors: Tensors, *, dtype: torch.dtype, device: torch.device, used: Collection[str] = ()
) -> None:
    """Give every parameter of a model on the meta device its tensor; keep what is left as ``model.unused``.

    Args:
        used: tensors that have their place already.
    """
    used = set(used)
    for name, parameter in list(model.named_parameters()):
        sources = published_names(name)
        if used.issuperset(sources):
            continue
        for source in sources:
            check(name, source, parameter, tensors, pieces=len(sources))
        used.update(sources)
        found = from_published(name, [tensors[source] for source in sources])
        if name in VOCABULARY:
            found = resized(found, parameter.shape[0])
        set_parameter(model, name, found.to(device=device, dtype=dtype))
    tied = {"llm.lm_head.weight"} if model.llm.lm_head is None else set()
    model.unused = {name: tensors[name] for name in tensors if name not in used | tied}
    report_surplus(list(model.unused))


def report_surplus(unused: Sequence[str]) -> None:
    """Warns: CheckpointWarning of tensors that a model of this configuration would not have.

    The vision tower is known to bring more than is used (its last layer and its head), and old files hold the rotary
    frequencies that follow from the configuration.
    """
    surplus = [name for name in unused if not name.startswith("vision_tower.") and not name.endswith(".inv_freq")]
    if surplus:
        warnings.warn(
            f"{len(surplus)} tensors have no place in the model of config.json, {surplus[0]!r} the first: they are "
            "kept but not used; check that the configuration is that of the weights",
            CheckpointWarning,
            stacklevel=4,
        )


def check(name: str, source: str, parameter: Tensor, tensors: Tensors, *, pieces: int) -> None:
    """Refuse a checkpoint that lacks a tensor or has one of another shape than its configuration says."""
    if source not in tensors:
        part = source.split(".", 1)[0]
        raise CheckpointError(
            f"{part}/ lacks the tensor {source.removeprefix(part + '.')!r}: the checkpoint is not whole"
        )
    expected = list(parameter.shape)
    expected[0] //= pieces
    shape = list(tensors.shape(source))
    if shape != expected and not (name in VOCABULARY and shape[1:] == expected[1:]):
        raise CheckpointError(
            f"{tensors.place(source)}: {source.split('.', 1)[1]!r} has shape {shape}, config.json says {expected}"
        )


def set_parameter(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor in the place of a parameter, whatever its shape and device; it learns if it holds floats."""
    path, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(path), leaf, nn.Parameter(tensor, requires_grad=tensor.is_floating_point()))
