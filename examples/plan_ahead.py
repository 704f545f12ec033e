"""What would a published model take? Tokens and memory, without its weights.

uv run python examples/plan_ahead.py [WIDTH HEIGHT]
"""

import sys

from nvila_model import NVILA, count_tokens, estimate_memory, list_models, preset

size = (int(sys.argv[1]), int(sys.argv[2])) if len(sys.argv) > 2 else (4032, 3024)

for name in list_models():
    model = NVILA.outline(preset(name))
    tokens = count_tokens(model, images=[size], text=40).total
    memory = [estimate_memory(model, weights=kind, tokens=tokens).total for kind in ("bfloat16", "w4a16")]
    sizes = " or ".join(f"{count / 2**30:.1f} GiB" for count in memory)
    print(f"{name:15} {tokens:5d} tokens for {size[0]} x {size[1]} pixels and a question; {sizes}")
