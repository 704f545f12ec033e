"""A file for llama.cpp: Qwen2-1.5B's shape in Q4_0, random weights.

    python -m venv llama && llama/bin/pip install llama-cpp-python gguf
    llama/bin/python benchmarks/make_gguf.py qwen2-1.5b-q4_0.gguf [--layers 28]
    uv run python benchmarks/bench_cpu_llm.py --gguf qwen2-1.5b-q4_0.gguf --llama llama/bin/python

The types are those of ``llama-quantize ... Q4_0`` where the output head is tied to the embedding: Q4_0 for every matrix
of a block, Q6_K for the embedding. Codes are drawn, scales are one small number, so that nothing overflows; what the
numbers are makes no difference to the time. The file takes no tokenizer and no weights from anywhere.
"""

import argparse
from pathlib import Path
from typing import Any

import gguf
import numpy as np

WIDTH, MLP, HEADS, KV_HEADS, VOCABULARY = 1536, 8960, 12, 2, 151936
SCALE = np.float16(0.004)


def codes(kind: Any, rows: int, columns: int, random: np.random.Generator) -> np.ndarray:
    """Random blocks of a quantized type, ``[rows, bytes]``, with scales that are small."""
    per_block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (rows, columns // per_block, block_bytes), dtype=np.uint8)
    place = slice(0, 2) if kind == gguf.GGMLQuantizationType.Q4_0 else slice(208, 210)  # Q6_K has its scale at the end
    blocks[..., place] = np.frombuffer(SCALE.tobytes(), dtype=np.uint8)
    if kind == gguf.GGMLQuantizationType.Q6_K:
        blocks[..., 192:208] = 1  # int8 scales of 16 codes each
    return blocks.reshape(rows, -1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--layers", type=int, default=28)
    options = parser.parse_args()
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(options.file, "qwen2")
    writer.add_context_length(32768)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(options.layers)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("none")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)

    def matrix(name: str, rows: int, columns: int, kind: Any = gguf.GGMLQuantizationType.Q4_0) -> None:
        writer.add_tensor(f"{name}.weight", codes(kind, rows, columns, random), raw_dtype=kind)

    def vector(name: str, value: float, length: int) -> None:
        writer.add_tensor(name, np.full(length, value, dtype=np.float32))

    head = WIDTH // HEADS
    matrix("token_embd", VOCABULARY, WIDTH, gguf.GGMLQuantizationType.Q6_K)
    vector("output_norm.weight", 1, WIDTH)
    for layer in range(options.layers):
        block = f"blk.{layer}"
        for name, rows, columns in (
            ("attn_q", WIDTH, WIDTH), ("attn_k", KV_HEADS * head, WIDTH), ("attn_v", KV_HEADS * head, WIDTH),
            ("attn_output", WIDTH, WIDTH), ("ffn_gate", MLP, WIDTH), ("ffn_up", MLP, WIDTH), ("ffn_down", WIDTH, MLP),
        ):  # fmt: skip
            matrix(f"{block}.{name}", rows, columns)
            if name in ("attn_q", "attn_k", "attn_v"):
                vector(f"{block}.{name}.bias", 0, rows)
        vector(f"{block}.attn_norm.weight", 1, WIDTH)
        vector(f"{block}.ffn_norm.weight", 1, WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(f"{options.file}: {options.file.stat().st_size / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
