"""What does it cost to compress a tile, and what comes out?

    uv run python benchmarks/bench_compress.py [--tiles 4] [--repeats 5] [--only divprune-25% tome-25%]

Every registered compressor on the tokens of SigLIP so400m at 448 px, 1024 x 1152 a tile, float32, one thread; those of
video on as many frames. Peers from transformers in the same process: Idefics3's pixel shuffle, which is 2 x 2 folding,
and Idefics2's perceiver resampler with as many latents and layers (its feed-forward layer is gated, so it has more
parameters). Random tokens: what is chosen means nothing, only what it costs. Attention and prompt are given.

"next" is the first linear layer behind it, to 3584 channels (Qwen2-7B), in millions of parameters: folding has none
of its own, but makes that layer wider. "tokens" are of one tile, or one frame's part of a video. "saved" is what a
chooser's time is of the prefill that it saves, in percent: the tokens that did not come through, at 2 x 7.6 billion
operations each (Qwen2-7B), on the same thread, whose speed is measured by a matrix product. Time is the best of the
repeats: the batch of tiles, divided by their number.
"""

import argparse
from collections.abc import Callable
from functools import partial
from time import perf_counter

import torch
from nvila_compress import Compressor, build, list_compressors
from torch import Tensor, nn
from transformers import Idefics2PerceiverConfig
from transformers.models.idefics2.modeling_idefics2 import Idefics2PerceiverResampler
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector

TOKENS, WIDTH, LLM_WIDTH = 1024, 1152, 3584
LLM_OPERATIONS = 2 * 7.6e9
"""Of one token in the prefill of Qwen2-7B, without attention."""


def best_ms(run: Callable[[Tensor], Tensor], tiles: Tensor, repeats: int) -> float:
    """Milliseconds a tile, the best of ``repeats`` after one to warm up."""
    times = []
    with torch.inference_mode():
        for _ in range(repeats + 1):
            start = perf_counter()
            run(tiles)
            times.append(perf_counter() - start)
    return min(times[1:]) * 1e3 / len(tiles)


def millions(module: nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


def context_of(compressor: Compressor, tiles: Tensor) -> dict[str, Tensor]:
    """What the compressor needs beside the tokens, drawn at random."""
    made = {
        "attention": torch.rand(len(tiles), TOKENS).softmax(dim=1),
        "class_token": torch.randn(len(tiles), WIDTH),
        "prompt": torch.randn(len(tiles), 24, WIDTH),
    }
    return {key: value for key, value in made.items() if key in compressor.needs}


def operations_a_second() -> float:
    """What one thread does in a product as the prefill has them."""
    a, b = torch.randn(256, LLM_WIDTH), torch.randn(LLM_WIDTH, LLM_WIDTH)
    times = []
    for _ in range(5):
        start = perf_counter()
        a @ b
        times.append(perf_counter() - start)
    return 2 * 256 * LLM_WIDTH * LLM_WIDTH / min(times)


def row(
    name: str, run: Callable[[Tensor], Tensor], parameters: float, tiles: Tensor, repeats: int, speed: float = 0.0
) -> None:
    with torch.inference_mode():
        out = run(tiles)
    tokens, width = out.shape[0] * out.shape[1] / len(tiles), out.shape[2]
    ms = best_ms(run, tiles, repeats)
    linear = width * LLM_WIDTH / 1e6
    saved = (TOKENS - tokens) * LLM_OPERATIONS
    share = f"{100 * ms / 1e3 / (saved / speed):9.3f}" if speed else ""
    print(f"{name:38}{tokens:7.0f}{TOKENS / tokens:7.2f}{width:7}{parameters:8.2f}{linear:7.1f}{ms:9.2f}{share}")


def idefics2_resampler(tokens: int) -> nn.Module:
    config = Idefics2PerceiverConfig(
        hidden_size=WIDTH,
        resampler_n_latents=tokens,
        resampler_depth=6,
        resampler_n_heads=8,
        resampler_head_dim=64,
        num_key_value_heads=8,
    )
    config._attn_implementation = "sdpa"
    return Idefics2PerceiverResampler(config).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiles", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=list_compressors())
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tiles = torch.randn(arguments.tiles, TOKENS, WIDTH)
    speed = operations_a_second()
    print(f"torch {torch.__version__}, {arguments.tiles} tiles, float32, 1 thread, best of {arguments.repeats}")
    print(f"a matrix product of the prefill: {speed / 1e9:.0f} billion operations a second\n")
    print(
        f"{'compressor':38}{'tokens':>7}{'ratio':>7}{'width':>7}{'own M':>8}{'next M':>7}{'ms/tile':>9}{'saved %':>9}"
    )
    for name in arguments.only:
        compressor = build(name).eval()
        run = partial(compressor, grid=(32, 32), **context_of(compressor, tiles))
        row(name, run, millions(compressor), tiles, arguments.repeats, speed)
    if arguments.only != list_compressors():
        return
    shuffle = Idefics3Connector.pixel_shuffle
    row("transformers: Idefics3 pixel shuffle", lambda x: shuffle(None, x, 2), 0.0, tiles, arguments.repeats)
    peer, mask = idefics2_resampler(121), torch.ones(arguments.tiles, TOKENS, dtype=torch.long)
    row(
        "transformers: Idefics2 resampler",
        lambda x: peer(context=x, attention_mask=mask[: len(x)]),
        millions(peer),
        tiles,
        arguments.repeats,
    )


if __name__ == "__main__":
    main()
