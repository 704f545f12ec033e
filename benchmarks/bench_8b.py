"""Does an 8B model fit into the memory of an ordinary machine, quantized there and answering there?

    uv run python benchmarks/bench_8b.py [--model NVILA-8B] [--layers 28] [--calibrate DATA.jsonl] [--folder DIR]

Makes a checkpoint of that shape with random weights in bfloat16 (16 GB, removed afterwards), then runs in processes of
their own ``nvila quantize SRC DST --llm w4a16 --vision w8a8`` and ``nvila ask --model DST examples/receipt.png``. The
peak of each is the largest resident set of the process, ``ru_maxrss`` of ``wait4``: everything in memory, pages of
files that are mapped included. The targets of this repository: 6 GB and 9 GB. Minutes each on two cores, and 22 GB of
disk. ``--layers`` makes a shallower model for a quick look; with ``--calibrate`` it takes minutes a layer.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

ROOT = Path(__file__).parent.parent
SHARD = 4 * 10**9
POOL = 1 << 24


def make(folder: Path, name: str, layers: int | None) -> None:
    """Write a checkpoint of random weights, a shard at a time."""
    import torch
    from nvila_model import NVILA
    from nvila_model.checkpoint.names import published_names
    from nvila_model.checkpoint.writing import write_descriptions
    from nvila_model.inputs.tokenizer import Tokenizer
    from nvila_model.presets import preset
    from nvila_model.quantization.shards import Shard, Unit, write_index, write_shard

    config = preset(name)
    if layers:
        config = config.model_copy(update={"llm": config.llm.model_copy(update={"num_hidden_layers": layers})})
    tokenizer = Tokenizer.from_folder(wide_tokenizer(folder / "words", config.llm.vocab_size))
    with torch.device("meta"):
        model = NVILA.from_config(config, tokenizer)
    pool = (torch.randn(POOL) * 0.02).to(torch.bfloat16)
    parts: dict[str, list[tuple[str, list[int]]]] = {}
    for ours, parameter in model.named_parameters():
        names = published_names(ours)
        shape = list(parameter.shape)
        for published in names:
            part, inside = published.split(".", 1)
            parts.setdefault(part, []).append((inside, [shape[0] // len(names), *shape[1:]]))
    for part, tensors in parts.items():
        shards: list[list[tuple[str, list[int]]]] = [[]]
        for inside, shape in tensors:
            if 2 * sum(torch.Size(each).numel() for _, each in [*shards[-1], ("", shape)]) > SHARD:
                shards.append([])
            shards[-1].append((inside, shape))
        written: list[Shard] = []
        for number, contents in enumerate(shards, start=1):
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
            made = {}
            for inside, shape in contents:
                norm = "norm" in inside and inside.endswith("weight")
                count = torch.Size(shape).numel()
                flat = torch.ones(count, dtype=torch.bfloat16) if norm else pool.repeat(-(-count // POOL))[:count]
                made[inside] = flat.reshape(shape).clone()
            write_shard(folder / part / file, made)
            written.append(Shard(part=part, file=file, units=(Unit(names=()),)))
        write_index(folder / part, written)
    write_descriptions(folder, config, tokenizer, quantized={})
    shutil.rmtree(folder / "words")


def wide_tokenizer(folder: Path, rows: int) -> Path:
    """nano's tokenizer with words that no text has, so that it has as many as the model."""
    import nvila_model

    shutil.copytree(Path(nvila_model.__file__).parent / "nano" / "llm", folder)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    words = content["model"]["vocab"] | {token["content"]: token["id"] for token in content["added_tokens"]}
    first = max(words.values()) + 1
    content["model"]["vocab"] = words | {f"\u0000{number}": number for number in range(first, rows)}
    file.write_text(json.dumps(content), encoding="utf-8")
    return folder


def run(words: list[str]) -> tuple[float, float, str]:
    """A command's seconds, peak in GB and output; a child counts from its parent's size, which is small."""
    started = perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {process.returncode}")
    return perf_counter() - started, usage.ru_maxrss * 1024 / 1e9, text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="NVILA-8B")
    parser.add_argument("--layers", type=int, help="of the language model; all by default")
    parser.add_argument("--calibrate", type=Path, help="LLaVA-style JSONL for nvila quantize")
    parser.add_argument("--samples", type=int, default=4, help="of --calibrate")
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder by default")
    parser.add_argument("--tokens", type=int, default=8, help="longest answer")
    parser.add_argument("--only", choices=["make"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        make(options.folder, options.model, options.layers)
        return
    nvila = str(Path(sys.executable).with_name("nvila"))
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        source, target = Path(name) / "float", Path(name) / "quantized"
        words = ["--model", options.model, *(["--layers", str(options.layers)] if options.layers else [])]
        seconds, _, _ = run([sys.executable, __file__, "--only", "make", "--folder", str(source), *words])
        print(f"made {size(source):.1f} GB in {seconds:.0f} s", flush=True)
        data = ["--calibrate", str(options.calibrate), "--samples", str(options.samples)] if options.calibrate else []
        told = run([nvila, "quantize", str(source), str(target), "--llm", "w4a16", "--vision", "w8a8", *data])
        print(f"quantize: {told[0]:.0f} s, peak {told[1]:.2f} GB (target 6); {size(target):.1f} GB written", flush=True)
        shutil.rmtree(source)
        picture = str(ROOT / "examples" / "receipt.png")
        asked = ["ask", picture, "What is the total?", "--model", str(target), "--json"]
        told = run([nvila, *asked, "--max-new-tokens", str(options.tokens)])
        answer = json.loads(told[2])
        stages = ", ".join(f"{stage} {value:.1f} s" for stage, value in answer["seconds"].items())
        print(
            f"ask: {told[0]:.0f} s, peak {told[1]:.2f} GB (target 9); {answer['prompt_tokens']} prompt tokens; {stages}"
        )


def size(folder: Path) -> float:
    """GB of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e9


if __name__ == "__main__":
    main()
