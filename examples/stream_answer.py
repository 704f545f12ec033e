"""Print an answer while it is being written, drawn at a temperature and repeatable by its seed.

uv run python examples/stream_answer.py [PICTURE] [QUESTION] [MODEL]
"""

import sys
from pathlib import Path

from nvila_model import NVILA, Image, Sampling

defaults = [str(Path(__file__).with_name("receipt.png")), "What is the total?", "nano"]
picture, question, name = sys.argv[1:4] + defaults[len(sys.argv) - 1 :]

model = NVILA.from_pretrained(name)
sampling = Sampling(max_new_tokens=32, temperature=0.5, top_p=0.9, seed=0)
for piece in model.stream([{"role": "user", "content": [Image(picture), question]}], sampling):
    print(piece, end="", flush=True)
print()
