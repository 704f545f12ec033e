"""How much faster than a plain loop are DeltaLoss's scores, and are they the same?

    OMP_NUM_THREADS=1 uv run python benchmarks/bench_delta_loss.py [--samples 64] [--questions 3] [--tower one|two]

nano as the large model and the first two of its six language layers as the small one, on one thread. Samples are
drawn scenes as files: PNG pictures, MP4 clips, and scenes written out as text. Every question about a scene is a
sample of its own, as in most question-answering sets, so ``--questions`` samples share a picture; ``--questions 1``
shows what is left where none do. ``--tower two`` changes the small model's vision tower a little, as if it had been
trained: then each model has to look for itself. The plain loop takes each sample through ``Processor.for_training``
and ``NVILA.loss`` for each model. Times are of the processor, in turns, the best of the rounds; the greatest
difference of a score is printed beside them. Expect the figures of docs/deltaloss.md, in about a minute.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from nvila_model import NVILA
from nvila_model.media import Image, Video
from nvila_model.messages import Conversation
from nvila_train import delta_loss
from nvila_train.evaluate import file_of
from nvila_train.playground import KINDS, Scene, draw

SMALL_LAYERS = 2


def conversations(folder: Path, kind: str, samples: int, questions: int) -> list[Conversation]:
    """Samples about drawn scenes of a kind, at most ``questions`` about each; ``text`` writes documents out."""
    found: list[Conversation] = []
    number = 0
    while len(found) < samples:
        scene = draw("documents" if kind == "text" else kind, seed=number)
        medium = scene.text + "\n" if kind == "text" else stored(scene, folder / f"{kind}-{number}")
        for question in scene.questions[:questions]:
            asked = {"role": "user", "content": [medium, question.question]}
            found.append([asked, {"role": "assistant", "content": question.answer}])
        number += 1
    return found[:samples]


def stored(scene: Scene, path: Path) -> Image | Video:
    """The scene as a file on the disk."""
    medium = file_of(scene)
    path.write_bytes(medium.source)
    return type(medium)(path)


@torch.no_grad()
def plain(samples: Sequence[Conversation], models: Sequence[NVILA]) -> list[float]:
    """The difference of every sample's log-probabilities, one sample and one model at a time."""
    deltas: list[float] = []
    for conversation in samples:
        totals: list[float] = []
        for model in models:
            inputs = model.needed_processor().for_training(conversation)
            assert inputs.labels is not None
            totals.append(-float(model.loss(inputs)) * int((inputs.labels[0][1:] >= 0).sum()))
        deltas.append(totals[0] - totals[1])
    return deltas


def timed(work: Callable[[], list[float]]) -> tuple[float, list[float]]:
    began = time.process_time()
    found = work()
    return time.process_time() - began, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=64, help="of each kind")
    parser.add_argument("--questions", type=int, default=3, help="about one scene, at most")
    parser.add_argument("--tower", choices=("one", "two"), default="two", help="whether the models share theirs")
    parser.add_argument("--rounds", type=int, default=3, help="the best counts")
    options = parser.parse_args()
    torch.set_num_threads(1)
    large, small = NVILA.from_pretrained("nano"), NVILA.from_pretrained("nano")
    small.llm.layers = small.llm.layers[:SMALL_LAYERS]
    if options.tower == "two":
        with torch.no_grad():
            for parameter in small.vision.parameters():
                parameter.mul_(1.001)
    print(f"{'':10}  plain loop    delta_loss    times   greatest difference")
    totals = [0.0, 0.0]
    with TemporaryDirectory() as folder:
        for kind in ("text", *KINDS):
            samples = conversations(Path(folder), kind, options.samples, options.questions)
            best = [float("inf"), float("inf")]
            difference = 0.0
            for _ in range(options.rounds):
                loop, expected = timed(lambda samples=samples: plain(samples, (large, small)))
                ours, found = timed(lambda samples=samples: [s.delta() for s in delta_loss(samples, large, small)])
                best = [min(best[0], loop), min(best[1], ours)]
                difference = max(difference, *(abs(a - b) for a, b in zip(expected, found, strict=True)))
            totals = [totals[0] + best[0], totals[1] + best[1]]
            print(line(kind, len(samples), *best), f"  {difference:.1e}", flush=True)
    print(line("all", 5 * options.samples, *totals))


def line(kind: str, samples: int, loop: float, ours: float) -> str:
    return f"{kind:10}  {samples / loop:8.1f}/s    {samples / ours:8.1f}/s    {loop / ours:5.2f}"


if __name__ == "__main__":
    main()
