"""Redraw the example pictures and clips from their seeds, and write down their true answers.

uv run python examples/draw_examples.py [FOLDER]

All come from the playground's test split, whose fonts and random numbers nano never saw in training.
"""

import json
import sys
from pathlib import Path

from nvila_train.nano.drawing import draw

EXAMPLES = {
    "receipt.png": ("documents", 9317, ["What is the total?", "What is the shop called?"]),
    "till_roll.png": ("documents", 9207, ["How much is the total?", "What does the cake cost?"]),
    "form.png": ("documents", 9112, ["Which city is given?", "What is the date?"]),
    "table.png": ("documents", 9288, ["What is the price of Salad?", "Which item has the price 8.40?"]),
    "sign.png": ("documents", 9491, ["What does the sign say?", "What colour is the sign?"]),
    "bars.png": ("charts", 9040, ["Which bar is the highest?", "How many bars are there?"]),
    "line.png": ("charts", 9005, ["What is the value of Sam?", "Which label has the highest value?"]),
    "pie.png": ("charts", 9213, ["Which label has the largest slice?", "What is the share of Fri?"]),
    "shapes.png": ("shapes", 9012, ["How many shapes are there?", "What is the largest shape?"]),
    "colours.png": ("shapes", 8000, ["What colour is the smallest shape?", "Is there a green triangle?"]),
    "banner.png": ("shapes", 9013, ["Where is the blue triangle?", "How many triangles are there?"]),
    "motion.mp4": ("clips", 9057, ["Which way does the shape move?", "What is moving?"]),
    "order.mp4": ("clips", 9033, ["What colour is the third shape?", "What follows the green star?"]),
    "counting.mp4": ("clips", 10005, ["How many times does the star flash?", "Which shape flashes?"]),
}
"""File name: kind, seed, and the questions that are kept."""

here = Path(__file__).parent
folder = Path(sys.argv[1]) if len(sys.argv) > 1 else here
folder.mkdir(parents=True, exist_ok=True)
answers: list[dict[str, str]] = []

for name, (kind, seed, wanted) in EXAMPLES.items():
    scene = draw(kind, seed=seed, split="test")
    if scene.clip is not None:
        (folder / name).write_bytes(scene.clip.encode())
    elif scene.image is not None:
        scene.image.save(folder / name)
    known = {question.question: question.answer for question in scene.questions}
    answers += [{"media": f"{here.name}/{name}", "question": text, "answer": known[text]} for text in wanted]

(folder / "answers.json").write_text(json.dumps(answers, indent=2) + "\n")
print(f"{len(EXAMPLES)} pictures and clips with {len(answers)} questions in {folder}")
