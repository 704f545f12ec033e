"""Answer several conversations in one batch: a video, two pictures, and text alone.

uv run python examples/ask_batch.py [MODEL]
"""

import sys

from nvila_model import NVILA, Image, Sampling, Video
from PIL import Image as Picture
from PIL import ImageDraw


def circle(x: int, colour: str) -> Picture.Image:
    """A disc on white paper."""
    picture = Picture.new("RGB", (192, 128), "white")
    ImageDraw.Draw(picture).ellipse((x, 40, x + 48, 88), fill=colour)
    return picture


clip = Video([circle(12 * step, "blue") for step in range(12)])
pair = [Image(circle(20, "red")), Image(circle(90, "green"))]

model = NVILA.from_pretrained(sys.argv[1] if len(sys.argv) > 1 else "nano")
conversations = [
    [{"role": "user", "content": [clip, "Which way does the circle move?"]}],
    [{"role": "user", "content": [*pair, "Which colours are the circles?"]}],
    [{"role": "user", "content": "What can you read?"}],
]
for answer in model.generate(conversations, Sampling(max_new_tokens=16)):
    print(f"{answer.prompt_tokens:5d} prompt tokens: {answer.text}")
