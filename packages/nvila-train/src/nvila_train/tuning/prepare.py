"""Fine-tuning: which parts learn in full, which through adapters, and which not at all.

A LoRA adapter learns ``W x + (alpha / rank) B A x`` beside a frozen ``W``: gradients and optimizer states exist for
``A`` and ``B`` alone, a hundredth of the weights. QLoRA also keeps the frozen ``W`` in 4 bits. For the vision tower
the paper finds its LayerNorms enough: as good as LoRA, a quarter faster, and nothing is saved for weights that do
not learn. Give the tower a learning rate 5 to 50 times below the language model's.

The layers are ``peft``'s, put into our own modules in place; what is trained in full beside them (norms, the
projector, a whole part) is listed in the adapter as ``modules_to_save``, so that ``peft`` reads the adapter too.

Source: NVILA, section 2.3.2 and Table 6; LoRA (arXiv 2106.09685); QLoRA (arXiv 2305.14314).
"""

import re
from collections.abc import Iterator
from typing import Any, Final, Literal, cast, get_args

from nvila_model import NVILA
from nvila_model.network import RMSNorm
from torch import nn

from nvila_train.tuning.nf4 import extra, is_packed, pack_linears, unpacked

VisionTuning = Literal["full", "layernorm", "lora", "frozen"]
LanguageTuning = Literal["full", "lora", "qlora", "frozen"]
ProjectorTuning = Literal["full", "frozen"]

ADAPTER: Final = "default"
"""``peft``'s name of the only adapter."""

NOTHING: Final = "dummy-target-modules"
"""``peft``'s word for an adapter without LoRA, which holds ``modules_to_save`` only."""


class TuningError(ValueError):
    """A way to tune that does not exist, or a model that it does not fit."""


def tune(
    model: NVILA,
    vision: VisionTuning = "layernorm",
    llm: LanguageTuning = "lora",
    *,
    projector: ProjectorTuning = "full",
    rank: int = 16,
    alpha: float | None = None,
    dropout: float = 0.0,
) -> NVILA:
    """Prepare a model, in place, so that only what is asked for learns.

    Args:
        model: with plain weights, as ``NVILA.from_pretrained`` gives it.
        vision: ``full``; ``layernorm``, the norms alone; ``lora``; ``frozen``.
        llm: ``full``; ``lora``; ``qlora``, LoRA over blocks in 4 bits; ``frozen``. Embedding and head learn with
            ``full`` only.
        projector: ``full`` or ``frozen``; a compressor with weights of its own goes with it.
        rank: of ``A`` and ``B`` in every adapted layer.
        alpha: the adapter's product is multiplied by ``alpha / rank``; twice the rank by default.
        dropout: share of an adapter's inputs that is dropped in training.

    Returns: the same model; a new adapter changes no answer.
    Raises: TuningError; MissingExtraError without ``peft`` (``lora``) or ``bitsandbytes`` (``qlora``).
    Source: NVILA, section 2.3.2.
    """
    _check(model, {"vision": vision, "llm": llm, "projector": projector}, rank=rank, dropout=dropout)
    model.requires_grad_(False)
    if llm == "qlora":
        pack_linears(model.llm.layers)
    learning = [*_whole("vision", vision), *_whole("llm", llm), *_whole("projector", projector)]
    if projector == "full" and any(name.startswith("compressor.") for name, _ in model.named_parameters()):
        learning.append("compressor")
    tower = cast(nn.Module, model.vision)
    if vision == "layernorm":
        learning += [f"vision.{name}" for name in norms(tower)]
    adapted = [
        linears(part, module)
        for part, module, way in (("vision", tower, vision), ("llm", model.llm.layers, llm))
        if way in ("lora", "qlora")
    ]
    pattern = "|".join(adapted) or NOTHING
    config = _config(model, pattern, learning, rank=rank, alpha=2 * rank if alpha is None else alpha, dropout=dropout)
    for name in learning:
        model.get_submodule(name).requires_grad_(True)
    owner: Any = model
    owner.peft_config = {ADAPTER: config}
    return model


def merge(model: NVILA) -> NVILA:
    """Add every adapter to its weight, in place: plain linear layers again, as a checkpoint holds them.

    Weights in 4 bits are unpacked first, so that the answers stay those of the tuned model.
    """
    layers: list[tuple[str, Any]] = list(model.named_modules())
    for name, layer in layers:
        delta = getattr(layer, "get_delta_weight", None)
        base = layer.get_base_layer() if delta else layer
        inner = name.endswith(".base_layer")  # comes with the layer around it
        if inner or not (delta or (isinstance(layer, nn.Linear) and is_packed(layer))):
            continue
        assert isinstance(base, nn.Linear)
        weight = unpacked(base)
        if delta:
            weight = weight + delta(ADAPTER).to(weight)
        plain = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        plain.weight = nn.Parameter(weight, requires_grad=False)
        plain.bias = base.bias
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, plain)
    if is_tuned(model):
        del model.peft_config
    return model.requires_grad_(False)


def is_tuned(model: nn.Module) -> bool:
    """Whether ``tune`` has prepared this model."""
    return hasattr(model, "peft_config")


def learnable(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that may learn: what ``tune`` chose in each tuned model inside a module, all others outside."""
    frozen: set[int] = set()
    for model in module.modules():
        if is_tuned(model):
            chosen = {id(parameter) for parameter in tuned_parameters(model).values()}
            frozen |= {id(parameter) for parameter in model.parameters()} - chosen
    return [parameter for parameter in module.parameters() if id(parameter) not in frozen]


def tuned_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What ``tune`` chose to learn, by name, whether or not a stage trains it."""
    owner: Any = model
    whole = tuple(f"{name}." for name in owner.peft_config[ADAPTER].modules_to_save or ())
    return {name: value for name, value in model.named_parameters() if "lora_" in name or name.startswith(whole)}


def norms(module: nn.Module) -> list[str]:
    """Names of the norms inside a module."""
    return [name for name, layer in module.named_modules() if isinstance(layer, nn.LayerNorm | RMSNorm)]


def linears(part: str, module: nn.Module) -> str:
    """A pattern for the linear layers inside a part, by the last two words of their names."""
    names = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    ends = sorted({".".join(name.split(".")[-2:]) for name in names})
    return rf"{part}\.(.*\.)?({'|'.join(map(re.escape, ends))})"


def _whole(part: str, way: str) -> Iterator[str]:
    if way == "full":
        yield part


def _config(model: NVILA, pattern: str, learning: list[str], *, rank: int, alpha: float, dropout: float) -> object:
    """``peft``'s description of the adapter, whose layers are put in."""
    peft = extra("peft", "peft")
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=pattern)
    if pattern != NOTHING:
        owner: Any = model
        owner.is_loaded_in_4bit = any(is_packed(layer) for layer in model.modules() if isinstance(layer, nn.Linear))
        peft.inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    config.modules_to_save = learning or None  # not wrapped by peft: it would keep a second copy of each
    return config


def _check(model: NVILA, ways: dict[str, str], *, rank: int, dropout: float) -> None:
    for part, allowed in (("vision", VisionTuning), ("llm", LanguageTuning), ("projector", ProjectorTuning)):
        if ways[part] not in get_args(allowed):
            raise TuningError(f"no way {ways[part]!r} to tune {part}: choose from {', '.join(get_args(allowed))}")
    if set(ways.values()) == {"frozen"}:
        raise TuningError("everything is frozen: let vision, llm or projector learn")
    if rank < 1:
        raise TuningError(f"rank {rank} is below 1: common ones are 8 to 64")
    if not 0 <= dropout < 1:
        raise TuningError(f"dropout {dropout} is not a share: use 0 or more and less than 1")
    if is_tuned(model):
        raise TuningError("the model is tuned already: merge it, or load it anew")
    if any(type(layer).__name__.startswith("Int") for layer in model.modules()):
        raise TuningError("the checkpoint is quantized: tune the one it was made from, with llm='qlora' for 4 bits")
