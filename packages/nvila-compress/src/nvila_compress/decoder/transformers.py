"""Dropping image tokens inside the decoders of ``transformers``.

Hooks in front of each layer do it; the model's code stays as it is. In the prefill, the hook of a layer where fewer
tokens enter ranks those of the layer before, and gathers hidden states, positions and mask. Each layer's cache then
holds its own tokens only. The first layer's holds all, so that the next token's position, which the model counts by
it, is right. In later steps only the mask must follow, where there is one.

Nothing here imports ``transformers``.
"""

from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from nvila_compress.contract import gather, highest
from nvila_compress.decoder.ranking import attention_of_last
from nvila_compress.decoder.schedule import DropSchedule

SUPPORTED = ("LlamaModel", "Qwen2Model")


def drop_tokens(model: nn.Module, schedule: DropSchedule, *, image_token_id: int | None = None) -> "Dropping":
    """Drop image tokens inside the language model of ``model``, in place, until ``remove`` is called.

    ``generate`` works as before, with cache, beams and left padding. A forward pass returns logits of the tokens that
    came through, ``positions[-1]``; the last token always does.

    Args:
        model: a ``transformers`` model that is or holds one Llama or Qwen2 decoder.
        schedule: ``FastV(...)``, ``PyramidDrop(...)`` or another.
        image_token_id: of the token that stands for images in ``input_ids``; from the model's config if not given.

    Returns: what undoes it. It is a context manager too.
    Raises: ValueError for a model without such a decoder or with more than one, with sliding windows, or without an
        image token; and for a schedule that names layers it does not have.
    """
    return Dropping(model, schedule, image_token_id)


class Dropping:
    """A schedule at work in a model: made by ``drop_tokens``.

    ``positions[i]``, after a prefill, is ``[b, s]``: the places in the prompt of the tokens that entered layer ``i``;
    None where all did. A forward pass is refused with a ValueError if it cannot be right: rows with different numbers
    of image tokens, labels, a static cache, or an image after the first prefill.
    """

    def __init__(self, model: nn.Module, schedule: DropSchedule, image_token_id: int | None) -> None:
        self.decoder = _decoder_of(model)
        self.layers: list[nn.Module] = list(self.decoder.layers)
        config: Any = getattr(model, "config", None)
        if image_token_id is None:
            image_token_id = getattr(config, "image_token_id", None)
        if image_token_id is None:
            raise ValueError(f"{type(model).__name__} names no image token in its config: pass image_token_id=")
        self.image_token_id = image_token_id
        self.schedule = schedule
        schedule.counts(1, len(self.layers))
        self.positions: list[Tensor | None] = [None] * len(self.layers)
        self._image: Tensor | None = None
        self._prompt: _Prompt | None = None
        self._length = 0
        self._handles = [model.register_forward_pre_hook(self._see_ids, with_kwargs=True)]
        self._handles.append(self.decoder.register_forward_pre_hook(self._begin, with_kwargs=True, prepend=True))
        for index, layer in enumerate(self.layers):
            self._handles.append(layer.register_forward_pre_hook(self._hook(index), with_kwargs=True))

    def remove(self) -> None:
        """Take the hooks out; the model is as it was."""
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _see_ids(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Where the images are is known from the ids that the whole model is given."""
        if kwargs.get("labels") is not None:
            raise ValueError("dropped tokens have no logits to compare labels with: remove() the dropping to train")
        ids: Tensor | None = args[0] if args else kwargs.get("input_ids")
        self._image = None if ids is None else ids == self.image_token_id

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A prefill starts with an empty cache."""
        cache = kwargs.get("past_key_values")
        image, self._image = self._image, None
        if cache is not None and getattr(cache, "is_compileable", False):
            raise ValueError("a static cache has room for all tokens in each layer: use a dynamic one")
        if cache is not None and cache.get_seq_length() > 0:
            if image is not None and bool(image.any()):
                raise ValueError("an image after the first prefill: pass all images in one prompt, or a new cache")
            self._prompt = None
            return
        self.positions = [None] * len(self.layers)
        self._prompt = None
        if image is None or not bool(image.any()):
            return
        numbers = image.sum(dim=1)
        low, high = int(numbers.min()), int(numbers.max())
        if low != high:
            raise ValueError(
                f"rows with {low} and {high} image tokens: only rows with equally many can be cut together"
            )
        padding: Any = kwargs.get("attention_mask")
        is_plain = isinstance(padding, Tensor) and padding.ndim == 2
        visible = padding.bool() if is_plain else torch.ones_like(image)
        counts = self.schedule.counts(low, len(self.layers))
        self._prompt, self._length = _Prompt(image, visible, counts), image.shape[1]

    def _hook(self, index: int) -> Any:
        def before_layer(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if self._prompt is None:
                return args, self._cut_columns(index, kwargs)
            hidden: Tensor = args[0]
            hidden = self._prompt.enter(index, self.layers, hidden, kwargs["position_embeddings"])
            self.positions[index] = kept = self._prompt.kept
            return (hidden, *args[1:]), kwargs if kept is None else _of_kept(kwargs, kept)

        return before_layer

    def _cut_columns(self, index: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        """After the prefill: the mask of the cached tokens that this layer has, and of all later ones."""
        mask, kept = kwargs.get("attention_mask"), self.positions[index]
        if not isinstance(mask, Tensor) or kept is None:
            return kwargs
        later = torch.arange(self._length, mask.shape[-1], device=mask.device).expand(kept.shape[0], -1)
        return {**kwargs, "attention_mask": _columns(mask, torch.cat([kept, later], dim=1))}


class _Prompt:
    """One prefill under way: which tokens are still there."""

    def __init__(self, image: Tensor, visible: Tensor, counts: list[int]) -> None:
        self.image, self.visible, self.counts = image, visible, counts
        places = torch.arange(image.shape[1], device=image.device)
        self.last = (visible * places).argmax(dim=1)
        self.kept: Tensor | None = None
        self.before: tuple[Tensor, tuple[Tensor, Tensor]] | None = None

    def enter(self, index: int, layers: list[nn.Module], hidden: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """What enters layer ``index``: all of ``hidden``, or what is kept of it."""
        if self.before is not None:
            hidden = self.drop(hidden, layers[index - 1], self.counts[index])
        drops_next = index + 1 < len(layers) and self.counts[index + 1] < self.counts[index]
        b, s = self.image.shape
        if drops_next:
            full = tuple(x.expand(b, s, -1) for x in rotation)
            kept = full if self.kept is None else tuple(gather(x, self.kept) for x in full)
            self.before = hidden, cast(tuple[Tensor, Tensor], kept)
        else:
            self.before = None
        return hidden

    @torch.no_grad()
    def drop(self, hidden: Tensor, layer: nn.Module, count: int) -> Tensor:
        """Keep the text and the ``count`` image tokens to which the last token attended most in ``layer``."""
        assert self.before is not None
        entered, rotation = self.before
        kept = self.kept
        if kept is None:
            kept = torch.arange(self.image.shape[1], device=hidden.device).expand(hidden.shape[0], -1)
        image, visible = self.image.gather(1, kept), self.visible.gather(1, kept)
        last = (kept == self.last[:, None]).long().argmax(dim=1)
        attention = attention_of_last(layer, entered, rotation, last, visible)
        worth = attention.masked_fill(~image, torch.inf)
        text = image.shape[1] - int(image[0].sum())
        stays = highest(worth, text + count).sort(dim=1).values
        self.kept = kept.gather(1, stays)
        return gather(hidden, stays)


def _of_kept(kwargs: dict[str, Any], kept: Tensor) -> dict[str, Any]:
    """A layer's keywords for the kept tokens of a prefill."""
    out = dict(kwargs)
    b = kept.shape[0]
    out["position_embeddings"] = tuple(gather(x.expand(b, -1, -1), kept) for x in kwargs["position_embeddings"])
    positions = kwargs.get("position_ids")
    if isinstance(positions, Tensor):
        out["position_ids"] = positions.expand(b, -1).gather(1, kept)
    mask = kwargs.get("attention_mask")
    if isinstance(mask, Tensor):
        if mask.ndim == 4:
            mask = mask.expand(b, -1, -1, -1)
            mask = mask.gather(2, kept[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))
        out["attention_mask"] = _columns(mask, kept)
    return out


def _columns(mask: Tensor, places: Tensor) -> Tensor:
    """The columns of a mask, ``[b, s]`` or ``[b, 1, q, s]``, at the places of each row."""
    if mask.ndim == 2:
        return mask.gather(1, places)
    b = places.shape[0]
    mask = mask.expand(b, -1, -1, -1)
    return mask.gather(3, places[:, None, None].expand(-1, mask.shape[1], mask.shape[2], -1))


def _decoder_of(model: nn.Module) -> Any:
    """The one Llama or Qwen2 decoder within a model."""
    found: list[Any] = [module for module in cast(Any, model).modules() if type(module).__name__ in SUPPORTED]
    if len(found) != 1:
        raise ValueError(
            f"{type(model).__name__} holds {len(found)} decoders of kind {' or '.join(SUPPORTED)}: one is needed"
        )
    if getattr(found[0], "has_sliding_layers", False):
        raise ValueError("a decoder with sliding windows counts cached tokens by window: only full attention can drop")
    return found[0]
