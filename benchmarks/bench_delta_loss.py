"""How much faster than a plain loop are DeltaLoss's scores, and are they the same?

    OMP_NUM_THREADS=1 uv run python benchmarks/bench_delta_loss.py [--samples 64] [--questions 3] [--tower one|two]
    OMP_NUM_THREADS=2 uv run python benchmarks/bench_delta_loss.py --threads 2
    OMP_NUM_THREADS=1 uv run python benchmarks/bench_delta_loss.py --questions 1 --parts shapes

nano as the large model and the first two of its six language layers as the small one. Samples are
drawn scenes as files: PNG pictures, MP4 clips, and scenes written out as text. Every question about a scene is a
sample of its own, as in most question-answering sets, so ``--questions`` samples share a picture; ``--questions 1``
shows what is left where none do. ``--tower two`` changes the small model's vision tower a little, as if it had been
trained: then each model has to look for itself. The plain loop takes each sample through ``Processor.for_training``
and ``NVILA.loss`` for each model. Times are of the processor on one thread, and of the clock on several, which both
ways may use; in turns, the best of the rounds. The greatest difference of a score is printed beside them. ``--parts``
prints instead what a sample of one kind takes in each part, and how many tiles of these samples differ. Expect the
figures of docs/deltaloss.md, in about a minute.
"""

import argparse
import gc
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from nvila_model import NVILA
from nvila_model.inputs.media import Image, Video
from nvila_model.inputs.messages import Conversation
from nvila_model.inputs.processor import Processor
from nvila_model.network.qwen2 import Qwen2
from nvila_model.network.vision import VisionTower
from nvila_train import delta_loss
from nvila_train.delta_loss.forward.distinct_tiles import distinct
from nvila_train.nano.drawing import KINDS, Scene, draw
from nvila_train.nano.held_out import file_of

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


def timed(work: Callable[[], list[float]], clock: Callable[[], float]) -> tuple[float, list[float]]:
    gc.collect()  # what earlier work left is not this one's
    began = clock()
    found = work()
    return clock() - began, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=64, help="of each kind")
    parser.add_argument("--questions", type=int, default=3, help="about one scene, at most")
    parser.add_argument("--tower", choices=("one", "two"), default="two", help="whether the models share theirs")
    parser.add_argument("--rounds", type=int, default=3, help="the best counts")
    parser.add_argument("--threads", type=int, default=1, help="of either; with several, times are of the clock")
    parser.add_argument("--parts", choices=("text", *KINDS), help="where the time of a kind goes, instead")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    large, small = NVILA.from_pretrained("nano"), NVILA.from_pretrained("nano")
    small.llm.layers = small.llm.layers[:SMALL_LAYERS]
    if options.tower == "two":
        with torch.no_grad():
            for parameter in small.vision.parameters():
                parameter.mul_(1.001)
    if options.parts:
        print_parts(options.parts, options.samples, options.questions, (large, small))
        return
    print(f"{'':10}  plain loop    delta_loss    times   greatest difference")
    totals = [0.0, 0.0]
    with TemporaryDirectory() as folder:
        for kind in ("text", *KINDS):
            samples = conversations(Path(folder), kind, options.samples, options.questions)
            best = [float("inf"), float("inf")]
            difference = 0.0
            for _ in range(options.rounds):
                loop, expected = timed(lambda samples=samples: plain(samples, (large, small)), clock)
                scores = delta_loss(samples, large, small, workers=options.threads)
                ours, found = timed(lambda scores=scores: [score.delta() for score in scores], clock)
                best = [min(best[0], loop), min(best[1], ours)]
                difference = max(difference, *(abs(a - b) for a, b in zip(expected, found, strict=True)))
            totals = [totals[0] + best[0], totals[1] + best[1]]
            print(line(kind, len(samples), *best), f"  {difference:.1e}", flush=True)
    print(line("all", 5 * options.samples, *totals))


def print_parts(kind: str, samples: int, questions: int, models: tuple[NVILA, NVILA]) -> None:
    """Milliseconds of the processor a sample, the second time, in each part of the plain loop and of ``delta_loss``."""
    spent = {
        "reading, tiling": measured(Processor, "for_training"),
        "vision towers": measured(VisionTower, "forward"),
        "scales, projector": measured(NVILA, "feature_tokens"),
        "language models": measured(Qwen2, "forward"),
    }
    with TemporaryDirectory() as folder:
        asked = conversations(Path(folder), kind, samples, questions)
        inputs = [models[0].needed_processor().for_training(each) for each in asked]
        media = [medium.tiles for each in inputs for medium in (*each.images, *each.videos)]
        tiles = sum(map(len, media))
        different = len(distinct(media)[0])
        print(f"{tiles / samples:.1f} tiles a sample, {different / samples:.1f} of them different")
        works = {"plain loop": lambda: plain(asked, models), "delta_loss": lambda: [*delta_loss(asked, *models)]}
        for name, work in works.items():
            work()
            for seconds in spent.values():
                seconds.clear()
            gc.collect()
            began = time.process_time()
            work()
            total = time.process_time() - began
            parts = {part: sum(seconds) for part, seconds in spent.items()}
            parts |= {"all else": total - sum(parts.values()), "together": total}
            print(f"{name:10}  " + "   ".join(f"{part} {1e3 * each / samples:.1f}" for part, each in parts.items()))


def measured(kind: type, name: str) -> list[float]:
    """The seconds that each call of a method takes from now on."""
    method, seconds = getattr(kind, name), []

    def call(*args: Any, **options: Any) -> Any:
        began = time.process_time()
        found = method(*args, **options)
        seconds.append(time.process_time() - began)
        return found

    setattr(kind, name, call)
    return seconds


def line(kind: str, samples: int, loop: float, ours: float) -> str:
    return f"{kind:10}  {samples / loop:8.1f}/s    {samples / ours:8.1f}/s    {loop / ours:5.2f}"


if __name__ == "__main__":
    main()
