"""The paper's Table 3 on nano: does a model learn more from what DeltaLoss keeps than from a random or a clustered
share?

    OMP_NUM_THREADS=1 uv run python benchmarks/delta_loss_table.py --work runs/deltaloss [--quick] [--sound]

Prints the tables of docs/results/deltaloss.md. Whatever is done is kept in ``--work``, a line of ``cells.jsonl`` for
every trained model, so that the same command goes on where it was stopped; another ``--seeds`` adds to it.

All models keep nano as it is up to the third layer of its language model, so that each sample goes that far once for
the whole series; behind it a large model has three new layers and a small one has one. These two learn a pool of their
own, and score the pool of ``delta_loss_pool.py``, which they have not seen. Then, for each seed, a model like the large
one learns what each method keeps of that pool, for as many epochs whatever is left, as in the paper: fewer samples,
fewer steps. Exact match is of greedy answers to fresh scenes in typefaces that no pool has. Expect ten minutes of a
free core.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from delta_loss_figures import tables
from delta_loss_pool import FAULTY, QUESTIONS, SOUND, write_pool
from nvila_model import NVILA
from nvila_model.network.fusion import IGNORE, padded
from nvila_model.network.qwen2 import Qwen2
from nvila_train import prune
from nvila_train.delta_loss.cluster import assign, feature
from nvila_train.delta_loss.forward.log_probabilities import encoded, features, read
from nvila_train.delta_loss.forward.windows import windows
from nvila_train.delta_loss.score_records import fingerprint, score_records
from nvila_train.delta_loss.score_table import Scores
from nvila_train.delta_loss.storage.records import Records
from nvila_train.nano.drawing import KINDS
from nvila_train.nano.random_weights import new_trainee
from nvila_train.trainer.optim import Optimizers, rate_factor
from nvila_train.trainer.precision import computing
from torch import Tensor, nn

LARGE, SMALL = 6, 4
"""Layers of the language model."""
KEPT = 3
"""Of these, the first, which are nano's and stay as they are; the others are new."""
KEEP = (0.5, 0.3, 0.1)
METHODS = ("deltaloss", "cluster", "random")
RATE, MUON = 1e-3, 2e-3
BATCH = 16
CLUSTERS = 100

Reading = tuple[Tensor, Tensor]
"""A sample behind the layers that stay: states ``[t, d]`` and labels ``[t]``."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One model: which share of the pool, by which method; ``large`` and ``small`` are the scorers, ``none`` learns
    nothing."""

    method: str
    keep: float
    seed: int


class Series:
    """Everything that the cells share, made when it is first needed and kept in a folder."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.work: Path = options.work
        self.samples, self.epochs, self.count = options.samples, options.epochs, options.count
        self.shares = SOUND if options.sound else FAULTY
        self.nano = NVILA.from_pretrained(options.model)
        self.work.mkdir(parents=True, exist_ok=True)
        self.claim(options.rows)
        for name, first in (("pool", 0), ("scorers", 10**6)):
            path = self.work / f"{name}.jsonl"
            write_pool(path, self.samples, first=first, shares=self.shares, questions=QUESTIONS)
        asked = self.count * len(KINDS)
        write_pool(self.work / "test.jsonl", asked, first=10**9, shares=SOUND, split="test", questions=1)
        lines = (self.work / "pool.jsonl").read_bytes().splitlines(keepends=True)
        (self.work / "pruned.jsonl").write_bytes(b"".join(lines[: options.rows]))
        self.records = Records.open(self.work / "pruned.jsonl")
        self.test_readings = self.readings("test")

    def claim(self, rows: int) -> None:
        """The folder is for these settings alone: what is kept there depends on all of them."""
        sizes = {"large": LARGE, "small": SMALL, "kept": KEPT, "rate": RATE, "muon": MUON, "batch": BATCH}
        pool = {
            "samples": self.samples,
            "shares": list(self.shares),
            "epochs": self.epochs,
            "count": self.count,
            "rows": rows,
        }
        settings = {"nano": fingerprint(self.nano)} | sizes | pool
        path = self.work / "settings.json"
        if not path.exists():
            path.write_text(json.dumps(settings, indent=1))
        elif json.loads(path.read_text()) != settings:
            raise SystemExit(f"{self.work} was made with other settings: choose another --work")

    @torch.no_grad()
    def readings(self, name: str) -> list[Reading]:
        """The samples of a file behind all that stays."""
        kept = self.work / f"{name}.pt"
        if not kept.exists():
            records = Records.open(self.work / f"{name}.jsonl")
            talks = (records.sample(row).messages for row in range(len(records)))
            found: list[Reading] = []
            for window in windows(talks, [self.nano.needed_processor()], limit=2**27):
                inputs = [sample.inputs[0] for sample in window]
                media = encoded(self.nano, inputs, features(self.nano, inputs))
                for embeds, labels in (read(self.nano, each, media) for each in inputs):
                    found.append((through(self.nano.llm, self.nano.llm.layers[:KEPT], embeds[None])[0], labels))
            torch.save(found, kept)
        return torch.load(kept)

    def scorer(self, method: str) -> NVILA:
        """The large or the small model."""
        model = fresh(self.nano, layers=LARGE if method == "large" else SMALL, seed=0)
        kept = self.work / f"{method}.pt"
        if not kept.exists():
            train(model, self.readings("scorers"), epochs=self.epochs, seed=0)
            torch.save(model.llm.state_dict(), kept)
        model.llm.load_state_dict(torch.load(kept))
        return model.eval()

    @cached_property
    def scores(self) -> Scores:
        """The pool under both."""
        kept = self.work / "scores.parquet"
        score_records(self.records, kept, self.scorer("large"), self.scorer("small"))
        return Scores.read(kept)

    @cached_property
    def looks(self) -> np.ndarray:
        """What the cluster baseline goes by, ``[n, c]``."""
        kept = self.work / "looks.npy"
        if not kept.exists():
            found = [feature(self.nano, row, self.records.sample(row).messages) for row in range(len(self.records))]
            np.save(kept, np.stack([each for each in found if each is not None]))
        return np.load(kept)


def fresh(nano: NVILA, *, layers: int, seed: int) -> NVILA:
    """nano with ``layers`` layers in its language model, those behind the first ``KEPT`` new, and the last norm."""
    assert nano.config is not None
    llm = nano.config.llm.model_copy(update={"num_hidden_layers": layers})
    config = nano.config.model_copy(update={"llm": llm})
    model = new_trainee(config, nano.needed_processor().tokenizer, seed=seed).model
    old = tuple(f"llm.layers.{number}." for number in range(KEPT))
    kept = {
        name: value
        for name, value in nano.state_dict().items()
        if name.startswith(old) or not name.startswith(("llm.layers", "llm.norm"))
    }
    model.load_state_dict(kept, strict=False)
    return model


def through(llm: Qwen2, layers: Sequence[nn.Module], states: Tensor) -> Tensor:
    """Some layers of a language model, ``[b, t, d]`` -> the same."""
    angles = llm.angles(states, 0, None)
    for index, layer in enumerate(layers):
        states = layer(states, angles, None, None, index)
    return states


def train(model: NVILA, samples: Sequence[Reading], *, epochs: int, seed: int) -> None:
    """Train the new layers on samples in random order."""
    new = model.requires_grad_(False).llm.layers[KEPT:]
    learning = [*new.requires_grad_(True).parameters(), *model.llm.norm.requires_grad_(True).parameters()]
    matrices = [each for each in learning if each.ndim == 2]
    rest = [each for each in learning if each.ndim != 2]
    optimizers = Optimizers([{"params": rest, "lr": RATE}, {"params": matrices, "lr": MUON, "muon": True}])
    rng = np.random.default_rng(seed)
    order = [batch for _ in range(epochs) for batch in batches(samples, rng)]
    model.train()
    for step, batch in enumerate(order):
        optimizers.set_rates(rate_factor(step, len(order), floor=0.05))
        states = padded([samples[place][0] for place in batch], 0.0, "right")
        labels = padded([samples[place][1] for place in batch], IGNORE, "right")
        with computing("bf16"):
            loss = model.label_losses(model.llm.norm(through(model.llm, new, states)), labels).mean()
        optimizers.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(optimizers.parameters, 1.0)
        optimizers.step()
    model.eval()


def batches(samples: Sequence[Reading], rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Every sample once: those of like length together, among some that were drawn."""
    order = rng.permutation(len(samples))
    for start in range(0, len(order), 16 * BATCH):
        drawn = sorted(order[start : start + 16 * BATCH], key=lambda place: len(samples[place][0]))
        cut = [drawn[first : first + BATCH] for first in range(0, len(drawn), BATCH)]
        yield from (np.array(cut[place]) for place in rng.permutation(len(cut)))


@torch.no_grad()
def right(model: NVILA, samples: Sequence[Reading]) -> list[bool]:
    """Whether the greedy answer to each is the true one: it is where each of its tokens is the likeliest."""
    found: dict[int, bool] = {}
    by_length = sorted(range(len(samples)), key=lambda place: len(samples[place][0]))
    for start in range(0, len(by_length), BATCH):
        batch = by_length[start : start + BATCH]
        states = padded([samples[place][0] for place in batch], 0.0, "right")
        hidden = model.llm.norm(through(model.llm, model.llm.layers[KEPT:], states))
        for place, row in zip(batch, hidden, strict=True):
            targets = samples[place][1][1:]
            learnt = targets != IGNORE
            likeliest = model.llm.logits(row[: len(targets)][learnt]).argmax(-1)
            found[place] = bool((likeliest == targets[learnt]).all())
    return [found[place] for place in range(len(samples))]


def cells(seeds: int) -> Iterator[Cell]:
    """In the order in which they are trained."""
    yield from (Cell(method=name, keep=1.0, seed=0) for name in ("large", "small"))
    yield Cell(method="none", keep=0.0, seed=1)
    for seed in range(1, seeds + 1):
        yield Cell(method="all", keep=1.0, seed=seed)
        yield from (Cell(method=method, keep=keep, seed=seed) for keep in KEEP for method in METHODS)


def result(series: Series, cell: Cell, pool: Sequence[Reading]) -> dict[str, Any]:
    """Train one cell and ask it."""
    began = time.process_time()
    if cell.method in ("large", "small"):
        model, kept = series.scorer(cell.method), np.ones(0, dtype=bool)
    elif cell.method == "none":
        model, kept = fresh(series.nano, layers=LARGE, seed=cell.seed).eval(), np.ones(0, dtype=bool)
    else:
        scores = series.scores
        kept = np.ones(len(scores), dtype=bool)
        if cell.method != "all":
            clusters = assign(series.looks, count=CLUSTERS, seed=cell.seed) if cell.method == "cluster" else None
            kept = prune(scores, keep=cell.keep, method=cell.method, seed=cell.seed, clusters=clusters).kept
        model = fresh(series.nano, layers=LARGE, seed=cell.seed)
        train(model, [pool[place] for place in np.flatnonzero(kept)], epochs=series.epochs, seed=cell.seed)
    answers = right(model, series.test_readings)
    qualities = Counter(series.records.sample(place).record["quality"] for place in np.flatnonzero(kept).tolist())
    return asdict(cell) | {
        "samples": int(kept.sum()), "qualities": qualities, "right": "".join(str(int(each)) for each in answers),
        "seconds": round(time.process_time() - began, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/deltaloss"), help="folder that keeps what is done")
    parser.add_argument("--model", default="nano", help="nano, or a folder with another state of it")
    parser.add_argument("--samples", type=int, default=2400, help="that the large and the small model learn")
    parser.add_argument("--rows", type=int, default=1200, help="of a pool as large, in random order, that are pruned")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--count", type=int, default=300, help="test questions a kind")
    parser.add_argument("--sound", action="store_true", help="a pool without faults; give it a folder of its own")
    parser.add_argument("--quick", action="store_true", help="a handful of everything, which says nothing")
    options = parser.parse_args()
    if options.quick:
        options.samples, options.epochs, options.seeds, options.count = 16, 1, 1, 4
    torch.set_num_threads(1)
    series = Series(options)
    log = options.work / "cells.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    wanted = list(cells(options.seeds))
    done = {Cell(method=line["method"], keep=line["keep"], seed=line["seed"]): line for line in lines}
    pool = series.readings("pool")[: options.rows]
    for cell in wanted:
        if cell not in done:
            done[cell] = result(series, cell, pool)
            with log.open("a") as file:
                file.write(json.dumps(done[cell]) + "\n")
            share = 100 * done[cell]["right"].count("1") / len(done[cell]["right"])
            print(f"{cell.method} {cell.keep} {cell.seed}: {share:.1f} %, {done[cell]['seconds']} s", flush=True)
    print(tables(options.work))


if __name__ == "__main__":
    main()
