"""Draw the example pictures and clips, and write down their true answers.

uv run python examples/draw_examples.py

The scenes come from the playground's test split, whose fonts and seeds nano was never trained on.
"""

import json
from pathlib import Path

from nvila_train.playground import Scene, draw

FOLDER = Path(__file__).parent
SCENES = {
    "receipt": ("documents", "What is the total?", None),
    "form": ("documents", "What is the job", None),
    "table": ("documents", "What is the temp", None),
    "sign": ("documents", "What is written on the sign", None),
    "bars": ("charts", "How many bars", None),
    "pie": ("charts", "What colour is the largest slice", None),
    "shapes": ("shapes", "How many", None),
    "colours": ("shapes", "What colour", None),
    "motion": ("clips", "What colour is the moving", None),
    "counting": ("clips", "How many times", None),
    "order": ("clips", "Which shape comes first", None),
}


def main() -> None:
    """Write each scene and ``answers.json``."""
    answers = []
    for number, (name, (kind, begins, holds)) in enumerate(SCENES.items()):
        scene, question = find(kind, begins, holds, first=1000 * (number + 1))
        file = FOLDER / f"{name}.{'mp4' if scene.clip else 'png'}"
        if scene.clip:
            file.write_bytes(scene.clip.encode())
        else:
            scene.image.save(file)
        answers.append({"media": f"examples/{file.name}", "question": question.question, "answer": question.answer})
    (FOLDER / "answers.json").write_text(json.dumps(answers, indent=2) + "\n")


def find(kind: str, begins: str | None, holds: str | None, *, first: int) -> tuple[Scene, object]:
    """The first scene from a seed on with a question that begins so, or that holds the word."""
    for seed in range(first, first + 400):
        scene = draw(kind, seed=seed, split="test")
        for question in scene.questions:
            text = question.question
            if (begins is None or text.startswith(begins)) and (holds is None or holds in text.lower()):
                return scene, question
    raise LookupError(f"no {kind} question that begins {begins!r} and holds {holds!r}")


if __name__ == "__main__":
    main()
