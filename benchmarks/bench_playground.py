"""How long a drawing takes, and how far a guesser gets who sees the questions but no picture.

    uv run python benchmarks/bench_playground.py [COUNT]   # under a minute on one core with the default of 300

Drawing is timed in processor time of one thread after the guesser's scenes, so the font cache is warm, as in training.
The guesser answers each wording with its most frequent answer in 10 COUNT training scenes, and a wording it never met
with the kind's most frequent answer; it is scored on COUNT test scenes.

Expect 1 to 3 ms a scene, 7 ms for an encoded clip, and at most a quarter of the answers guessed (EPYC server core).
"""

import sys
from collections import Counter, defaultdict
from time import process_time

from nvila_train.nano.drawing import KINDS, draw


def milliseconds(kind: str, count: int, *, encode: bool = False) -> float:
    """Processor time a scene."""
    start = process_time()
    for seed in range(count):
        clip = draw(kind, seed=seed).clip
        if encode and clip is not None:
            clip.encode()
    return (process_time() - start) / count * 1000


def blind_accuracy(kind: str, count: int) -> float:
    """Share of the questions of test scenes that the guesser gets right."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    overall: Counter[str] = Counter()
    for seed in range(10 * count):
        for question in draw(kind, seed=10_000_000 + seed).questions:
            answers[question.question][question.answer] += 1
            overall[question.answer] += 1
    asked = [question for seed in range(count) for question in draw(kind, seed=seed, split="test").questions]
    right = sum(answers.get(q.question, overall).most_common(1)[0][0] == q.answer for q in asked)
    return right / len(asked)


count = int(sys.argv[1]) if len(sys.argv) > 1 else 300
print("| kind | ms a scene | blind guesser |\n|---|---|---|")
for kind in KINDS:
    blind = blind_accuracy(kind, count)
    print(f"| {kind} | {milliseconds(kind, count):.1f} | {blind:.0%} |")
print(f"| clips, encoded | {milliseconds('clips', count, encode=True):.1f} | |")
