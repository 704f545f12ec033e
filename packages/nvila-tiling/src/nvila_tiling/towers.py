"""The merged map of a picture from anybody's vision tower: transformers, open-clip or timm.

Each library hands out the features of a layer in its own way, with a class token or registers before them or without,
and expects pixels scaled in its own way. Here they become one: patch tokens only, as a map.
"""

from collections.abc import Sequence
from typing import Any, overload

import torch
from einops import rearrange
from torch import Tensor, nn

from .colours import CLIP, Colours, colours_of
from .errors import GridError, TilingError
from .merge import merge_scales
from .tiler import TiledImage


@overload
def features_of(
    tower: nn.Module, tiled: TiledImage, *, layer: int = ..., norm: bool = ..., batch: int = ...
) -> Tensor: ...
@overload
def features_of(
    tower: nn.Module, tiled: Sequence[TiledImage], *, layer: int = ..., norm: bool = ..., batch: int = ...
) -> list[Tensor]: ...
def features_of(
    tower: nn.Module, tiled: TiledImage | Sequence[TiledImage], *, layer: int = -2, norm: bool = False, batch: int = 32
) -> Tensor | list[Tensor]:
    """The features of tiled images as one map each: ``features_of(tower, tiler(picture))``.

    Args:
        tower: a vision model of transformers (``SiglipVisionModel``, ``CLIPVisionModel``, or the two-sided model that
            holds it), of open-clip (the model, or its ``visual``), or a vision transformer of timm.
        tiled: one image, or several.
        layer: whose output is taken, counted as transformers counts hidden states: 0 the embeddings, -1 the last
            block, -2 the one before (NVILA's and LLaVA's).
        norm: apply the tower's last norm to it.
        batch: tiles that pass the tower together, at least 1.

    Shapes: tiles ``[n, 3, tile, tile]`` -> ``[H, W, scales * c]`` an image, in the tower's dtype and on its device;
        class tokens and registers are dropped.
    Raises: TilingError if the tiles were not normalised as the tower's library says, or the tower is of no known kind;
        GridError if its tokens are no square.
    """
    images = [tiled] if isinstance(tiled, TiledImage) else list(tiled)
    if not images:
        return []
    for image in images:
        _check_colours(tower, image)
    first = next(tower.parameters())
    tiles = torch.cat([image.tiles for image in images])
    features = [
        _patches(tower, tiles[start : start + max(batch, 1)].to(first.device, first.dtype), layer, norm)
        for start in range(0, len(tiles), max(batch, 1))
    ]
    maps = merge_scales(torch.cat(features), [image.plan for image in images])
    return maps[0] if isinstance(tiled, TiledImage) else maps


def _patches(tower: Any, tiles: Tensor, layer: int, norm: bool) -> Tensor:
    """Patch tokens ``[n, h*w, c]`` of a layer, whichever library the tower is of."""
    visual = getattr(tower, "visual", tower)  # open-clip's two-sided model
    trunk = getattr(visual, "trunk", visual)  # a tower of timm inside open-clip
    if hasattr(trunk, "forward_intermediates"):
        return _intermediate(trunk, tiles, layer, norm)
    if hasattr(tower, "config"):
        return _hidden_state(tower, tiles, layer, norm)
    raise TilingError(
        f"a {type(tower).__name__} is no vision tower of transformers, open-clip or timm: "
        "pass its features to merge_scales"
    )


def _intermediate(trunk: Any, tiles: Tensor, layer: int, norm: bool) -> Tensor:
    """timm's and open-clip's own way: the output of one block, without prefix tokens."""
    blocks = getattr(trunk, "blocks", None) or trunk.transformer.resblocks
    index = layer - 1 if layer >= 0 else len(blocks) + layer
    if not 0 <= index < len(blocks):
        raise TilingError(f"layer {layer} is none of the {len(blocks)} blocks of the tower: use -1 for the last")
    if hasattr(trunk, "blocks"):
        (found,) = trunk.forward_intermediates(
            tiles, indices=[index], norm=norm, intermediates_only=True, output_fmt="NLC"
        )
        return found
    found = trunk.forward_intermediates(
        tiles, indices=[index], normalize_intermediates=norm, intermediates_only=True, output_fmt="NLC"
    )
    return found["image_intermediates"][0]


def _hidden_state(tower: Any, tiles: Tensor, layer: int, norm: bool) -> Tensor:
    """transformers' way: all hidden states, class tokens and registers first."""
    vision = getattr(tower, "vision_model", tower)
    config = getattr(tower.config, "vision_config", tower.config)
    if hasattr(tower, "vision_model") and hasattr(tower, "text_model"):
        tower = vision
    options = {"interpolate_pos_encoding": True} if tiles.shape[-1] != config.image_size else {}
    states = tower(pixel_values=tiles, output_hidden_states=True, **options).hidden_states
    if not -len(states) <= layer < len(states):
        raise TilingError(f"layer {layer} is none of the {len(states)} hidden states of the tower: use -1 for the last")
    found: Tensor = states[layer]
    if norm:
        last = getattr(vision, "post_layernorm", None) or getattr(vision, "layernorm", None)
        if last is None:
            raise TilingError(f"a {type(tower).__name__} has no last norm that is known: pass norm=False")
        found = last(found)
    count = (tiles.shape[-1] // config.patch_size) ** 2
    if found.ndim == 4:  # a convolutional tower
        found = rearrange(found, "n c h w -> n (h w) c")
    if found.shape[1] < count:
        raise GridError(f"the tower gives {found.shape[1]} tokens a tile, but {count} patches were expected")
    return found[:, found.shape[1] - count :]


def _check_colours(tower: Any, image: TiledImage) -> None:
    """Refuse tiles that are scaled for another tower, where the tower's library says for which."""
    given, wanted = Colours(image.mean, image.std), _colours_wanted(tower)
    values = (*given.mean, *given.std)
    if wanted and max(abs(a - b) for a, b in zip(values, (*wanted.mean, *wanted.std), strict=True)) > 1e-3:
        raise TilingError(
            f"the tiles are normalised by mean {given.mean} and std {given.std}, but the tower was trained with "
            f"{wanted.mean} and {wanted.std}: use tiler.for_processor(its image processor)"
        )


def _colours_wanted(tower: Any) -> Colours | None:
    """Mean and deviation that a tower was trained with; None where nothing says so."""
    visual = getattr(tower, "visual", tower)
    for source in (visual, getattr(visual, "pretrained_cfg", None)):
        if source is not None:
            try:
                return colours_of(source)
            except TilingError:
                continue
    kind = str(getattr(getattr(tower, "config", None), "model_type", ""))
    return CLIP if kind in ("clip", "clip_vision_model") else None
