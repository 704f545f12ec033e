"""Ask about one picture, and see what the answer took.

uv run python examples/ask_image.py [PICTURE] [QUESTION] [MODEL]
"""

import sys
from pathlib import Path

from nvila_model import NVILA, Image

defaults = [str(Path(__file__).with_name("receipt.png")), "What is the total?", "nano"]
picture, question, name = sys.argv[1:4] + defaults[len(sys.argv) - 1 :]

model = NVILA.from_pretrained(name)
answer = model.generate([{"role": "user", "content": [Image(picture), question]}])

print(answer.text)
print(f"{answer.prompt_tokens} prompt tokens, {len(answer.ids)} new ({answer.finish})")
print(f"encode {answer.timings.encode:.2f} s, prefill {answer.timings.prefill:.2f} s")
