"""How fast does a processor answer with 4-bit weights, and how much memory does that take?

    uv run python benchmarks/bench_cpu_llm.py [--threads 2] [--layers 28] [--prompt 512] [--answer 32]
        [--rounds 5] [--size 1.5B] [--llama llama/bin/python --gguf qwen2-1.5b-q4_0.gguf]

The shape of Qwen2-1.5B, or of another ``--size``, with random weights, a process a model, one after the other; times
are medians over the rounds:

``W4A16``  nvila: 4-bit weights in groups of 128, optimized for this processor, the output head too, whose best
           scores are made again from the embedding, which is bfloat16 as in its file; all else float32
``bf16``   transformers' Qwen2ForCausalLM in bfloat16
``fp32``   the same in float32
``Q4_0``   llama.cpp, in an environment that has llama-cpp-python, on a file that ``make_gguf.py`` made there

"packings" is what all of it takes in the kernels' layouts, "weights" what it takes as it is stored.

"prefill" reads the prompt (the best of two), "decode" is the best token after it, both with the scores of the next
token. "weights" is what the parameters and packed weights take, "cache" keys and values, "peak" the most that the
process held above what it held when the model was made without weights. The targets of this repository: decode 3.5
times bf16 and 1.0 times llama.cpp, prefill 2 times fp32 and 1.5 times llama.cpp, peak 1.2 times weights and cache.
Ratios on a busy machine mean little.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple, cast

import torch
from nvila_model.cpu.openmp import wait_briefly
from torch import Tensor, nn


class Size(NamedTuple):
    """The shape of a language model of the Qwen2 family."""

    width: int
    mlp: int
    heads: int
    kv_heads: int


SIZES = {"0.5B": Size(896, 4864, 14, 2), "1.5B": Size(1536, 8960, 12, 2)}
VOCABULARY = 151936
THETA = 1e6
GROUP = 128
STATUS = Path("/proc/self/status")


def memory(field: str) -> int:
    """Bytes of this process by Linux's count: VmRSS now, VmHWM at most."""
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def fill(tensor: Tensor) -> None:
    """Random numbers of weights' size; drawn once a million, since a billion take minutes."""
    flat = tensor.data.view(-1)
    some = (torch.randn(min(len(flat), 1 << 20)) * 0.02).to(tensor.dtype)
    for start in range(0, len(flat), len(some)):
        flat[start : start + len(some)] = some[: len(flat) - start]


def seconds(run: Callable[[], object]) -> float:
    started = perf_counter()
    run()
    return perf_counter() - started


def timed(prefill: Callable[[], object], step: Callable[[], object], answer: int) -> dict[str, float]:
    """``prefill`` begins anew each time, ``step`` goes on."""
    first = min(seconds(prefill) for _ in range(2))
    return {"prefill": first, "decode": min(seconds(step) for _ in range(answer))}


def ours(options: argparse.Namespace) -> dict[str, Any]:
    from nvila_kernels import Int4Linear
    from nvila_kernels.cpu import Shape, give_back, large_blocks_returned, layer_bytes, optimize_
    from nvila_kernels.policy import linear_layers
    from nvila_model.cpu.optimized_model import optimize_language, screened
    from nvila_model.generation.prompt import prefill
    from nvila_model.network.qwen2 import Qwen2
    from nvila_model.network.vocabulary import StoredEmbedding

    size = SIZES[options.size]
    qkv = size.width + 2 * size.kv_heads * size.width // size.heads
    sizes = ((size.width, qkv), (size.width, size.width), (size.width, 2 * size.mlp), (size.mlp, size.width))
    optimize_(nn.Sequential(*(Int4Linear(k, n, group_size=GROUP) for k, n in sizes)))
    screened(torch.randn(2**15, size.width))(torch.ones(1, size.width))  # measured and compiled before memory counts
    with torch.device("meta"):
        model = Qwen2(
            vocab_size=VOCABULARY, width=size.width, layers=options.layers, heads=size.heads, kv_heads=size.kv_heads,
            mlp_width=size.mlp, tied=True, rope_theta=THETA,
        )  # fmt: skip
    gc.collect()
    give_back()
    before = memory("VmRSS")
    table = torch.empty(VOCABULARY, size.width, dtype=torch.bfloat16)
    fill(table)
    model.embed_tokens = StoredEmbedding(table, dtype=torch.float32)
    weights = table.nbytes + int(layer_bytes(Shape(rows=1, k=size.width, n=VOCABULARY, group=GROUP)))
    with large_blocks_returned():
        model.lm_head = screened(table)  # pyright: ignore
    model.norm.to_empty(device="cpu")
    nn.init.ones_(model.norm.weight)
    kernels: set[str] = set()
    for block in model.layers:
        for name, linear in linear_layers(block).items():
            layer = Int4Linear(linear.in_features, linear.out_features, bias=linear.bias is not None, group_size=GROUP)
            layer.packed.random_(-(2**15), 2**15)
            layer.scale_zero.random_(5, 12)  # zero points that differ, as those of trained weights do
            layer.scale_zero += int(torch.tensor(0.004, dtype=torch.float16).view(torch.int16)) << 16
            weights += sum(tensor.nbytes for tensor in layer.buffers())
            block.set_submodule(name, layer)
        for name in ("input_layernorm", "post_attention_layernorm"):
            norm = block.get_submodule(name).to_empty(device="cpu")
            nn.init.ones_(norm.weight)
    model.eval()
    with large_blocks_returned():
        model, done = optimize_language(model)
    kernels |= {each.choice.kernel for each in done}
    cache = model.cache(1, options.prompt + options.answer)

    def begin() -> Tensor:
        cache.length = 0
        return model.logits(prefill(model, model.embed_tokens(prompt), cache=cache))

    def step() -> Tensor:
        return model.logits(model(model.embed_tokens(token), cache=cache)[:, -1])

    token = torch.ones(1, 1, dtype=torch.int64)
    prompt = torch.arange(options.prompt)[None]
    with torch.inference_mode():
        found = timed(begin, step, options.answer)
    packed = table.nbytes + cast(Any, model.lm_head).rough.weight.choice.bytes
    packed += sum(each.choice.bytes for each in done)
    sizes = {"weights": weights, "packed": packed, "cache": cache_bytes(options, torch.float32.itemsize)}
    return {**found, **sizes, "peak": memory("VmHWM") - before, "kernels": sorted(kernels)}


def transformers_model(options: argparse.Namespace, dtype: torch.dtype) -> dict[str, Any]:
    from nvila_kernels.cpu import give_back
    from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

    size = SIZES[options.size]
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=size.width, intermediate_size=size.mlp, num_hidden_layers=options.layers,
        num_attention_heads=size.heads, num_key_value_heads=size.kv_heads, tie_word_embeddings=True,
        max_position_embeddings=32768,
    )  # fmt: skip
    with torch.device("meta"):
        model = Qwen2ForCausalLM(config).to(dtype).eval()
    gc.collect()
    give_back()
    before = memory("VmRSS")
    model.to_empty(device="cpu")
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its buffer is computed, not loaded
    for parameter in model.parameters():
        fill(parameter)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    caches = [DynamicCache(config=config)]

    def read(ids: Tensor) -> None:
        model(ids, past_key_values=caches[0], logits_to_keep=1)

    def begin() -> None:
        caches[0] = DynamicCache(config=config)
        read(prompt)

    token = torch.ones(1, 1, dtype=torch.int64)
    prompt = torch.arange(options.prompt)[None]
    with torch.inference_mode():
        found = timed(begin, lambda: read(token), options.answer)
    sizes = {"weights": weights, "cache": cache_bytes(options, dtype.itemsize)}
    return {**found, **sizes, "peak": memory("VmHWM") - before}


def cache_bytes(options: argparse.Namespace, element: int) -> int:
    """Of keys and values, ``element`` bytes each."""
    positions = options.prompt + options.answer
    size = SIZES[options.size]
    return 2 * options.layers * size.kv_heads * size.width // size.heads * positions * element


def llama(options: argparse.Namespace) -> list[str]:
    """The command that times llama.cpp."""
    counts = (options.threads, options.prompt, options.answer)
    return [str(options.llama), str(Path(__file__).with_name("run_llama.py")), str(options.gguf), *map(str, counts)]


MODELS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "W4A16": ours,
    "bf16": lambda options: transformers_model(options, torch.bfloat16),
    "fp32": lambda options: transformers_model(options, torch.float32),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=28, help="fewer for a quick look")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--answer", type=int, default=32)
    parser.add_argument("--size", choices=SIZES, default="1.5B")
    parser.add_argument("--rounds", type=int, default=1, help="of all models; other work comes and goes")
    parser.add_argument("--llama", type=Path, help="python of an environment with llama-cpp-python")
    parser.add_argument("--gguf", type=Path, help="Q4_0 file of this shape for it; make_gguf.py makes one")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=MODELS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        torch.set_num_threads(options.threads)
        print(json.dumps(MODELS[options.only](options)))
        return
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    rounds: dict[str, list[dict[str, Any]]] = {}
    commands = {name: [sys.executable, __file__, *sys.argv[1:], "--only", name] for name in MODELS}
    if options.llama and options.gguf:
        commands["Q4_0"] = llama(options)
    for name, words in list(commands.items()) * options.rounds:
        settings = environment.copy()
        if name == "W4A16":
            wait_briefly(settings)  # as nvila's command does
        run = subprocess.run(words, env=settings, check=True, stdout=subprocess.PIPE, text=True)
        rounds.setdefault(name, []).append(json.loads(run.stdout.splitlines()[-1]))
    found = {name: typical(each) for name, each in rounds.items()}
    if options.json:
        print(json.dumps({"threads": options.threads, "layers": options.layers, "load": os.getloadavg(), **found}))
        return
    show(found, options)


def typical(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of each time, the largest peak."""
    times = {phase: median(each[phase] for each in rounds) for phase in ("prefill", "decode")}
    return {**rounds[0], **times, "peak": max(each["peak"] for each in rounds)}


def show(found: dict[str, dict[str, Any]], options: argparse.Namespace) -> None:
    load = os.getloadavg()[0]
    print(
        f"{options.layers} layers, prompt of {options.prompt}, {options.threads} threads, {options.rounds} rounds, "
        f"load average {load:.1f}"
    )
    print(
        f"{'':8}{'prefill ms':>12}{'decode ms':>12}{'weights MiB':>13}{'peak MiB':>10}{'peak / (weights + cache)':>26}"
    )
    for name, row in found.items():
        share = row["peak"] / (row["weights"] + row["cache"])
        print(
            f"{name:8}{row['prefill'] * 1e3:12.1f}{row['decode'] * 1e3:12.2f}{row['weights'] / 2**20:13.0f}"
            f"{row['peak'] / 2**20:10.0f}{share:26.2f}"
        )
    for phase, peer in (("decode", "bf16"), ("decode", "Q4_0"), ("prefill", "fp32"), ("prefill", "Q4_0")):
        if peer in found:
            print(f"{phase}: {found[peer][phase] / found['W4A16'][phase]:.2f} x {peer}")
    mine = found["W4A16"]
    share = mine["peak"] / (mine["packed"] + mine["cache"])
    print(f"packings: {mine['packed'] / 2**20:.0f} MiB; peak / (packings + cache): {share:.2f}")
    print("kernels:", "; ".join(mine["kernels"]))


if __name__ == "__main__":
    main()
