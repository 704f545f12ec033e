"""The paper's Table 3 on nano: does a model learn more from what DeltaLoss keeps than from a random or a clustered
share?

    OMP_NUM_THREADS=1 uv run python benchmarks/delta_loss_table.py [--quick] [--out docs/results/deltaloss.md]

The pool: questions about drawn scenes of every kind, a tenth of them with the answer of another question of their
kind, since real mixtures hold faults too. All models keep nano's vision tower, projector and embeddings as they are;
only the layers of the language model are trained, from random weights. A large one (6 layers) and a small one (2
layers) learn the whole pool and score it. Then, for three seeds, a model like the large one learns what each method
keeps, for as many epochs whatever is left of the pool, as in the paper: fewer samples, fewer steps. Accuracy is exact
match on test scenes, as in ``nvila-train eval``, the mean over the kinds, with the standard deviation over seeds.

The paper's margins are one to two points, so expect differences within the spread. Not run as a whole yet, so neither
the hours it takes nor its figures are known; ``--quick`` goes the whole way with a handful of samples, which says
nothing about the methods, and writes no page.
"""

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from nvila_model import NVILA
from nvila_model.fusion import IGNORE, padded
from nvila_model.messages import Conversation
from nvila_train import delta_loss, prune
from nvila_train.delta_loss.cluster import cluster
from nvila_train.delta_loss.prune import Method
from nvila_train.delta_loss.scores import Scores
from nvila_train.evaluate import accuracy, evaluate, file_of
from nvila_train.optim import rate_factor
from nvila_train.playground import KINDS, draw
from nvila_train.trainee import new_trainee
from torch import Tensor

LARGE, SMALL = 6, 2
"""Layers."""
KEEP = (0.5, 0.3, 0.1)
METHODS: tuple[Method, ...] = ("deltaloss", "cluster", "random")
WRONG = 0.1
RATE = 1e-3
BATCH = 16


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Samples with their sources, and as the language model reads them: embeddings ``[t, d]`` and labels ``[t]``."""

    conversations: list[Conversation]
    sources: list[str]
    wrong: list[bool]
    read: list[tuple[Tensor, Tensor]]


def make_pool(nano: NVILA, samples: int) -> Pool:
    """Questions about scenes of every kind in turn, some with an answer to another question of their kind."""
    rng = random.Random(0)
    asked: list[tuple[str, object, str, str]] = []
    for number in range(samples):
        kind = KINDS[number % len(KINDS)]
        scene = draw(kind, seed=number)
        question = rng.choice(scene.questions)
        asked.append((kind, file_of(scene), question.question, question.answer))
    answers = {kind: [answer for name, _, _, answer in asked if name == kind] for kind in KINDS}
    conversations: list[Conversation] = []
    wrong: list[bool] = []
    for kind, medium, question, answer in asked:
        told = rng.choice(answers[kind]) if rng.random() < WRONG else answer
        wrong.append(told != answer)
        conversations.append([{"role": "user", "content": [medium, question]}, {"role": "assistant", "content": told}])
    read = [embedded(nano, conversation) for conversation in conversations]
    return Pool(conversations=conversations, sources=[kind for kind, *_ in asked], wrong=wrong, read=read)


@torch.no_grad()
def embedded(nano: NVILA, conversation: Conversation) -> tuple[Tensor, Tensor]:
    fused = nano.embed(nano.needed_processor().for_training(conversation), side="right")
    assert fused.labels is not None
    return fused.embeds[0], fused.labels[0]


def fresh(nano: NVILA, *, layers: int, seed: int) -> NVILA:
    """nano with new layers in its language model."""
    assert nano.config is not None
    llm = nano.config.llm.model_copy(update={"num_hidden_layers": layers})
    config = nano.config.model_copy(update={"llm": llm})
    model = new_trainee(config, nano.needed_processor().tokenizer, seed=seed).model
    kept = {name: value for name, value in nano.state_dict().items() if not name.startswith(("llm.layers", "llm.norm"))}
    model.load_state_dict(kept, strict=False)
    return model


def train(model: NVILA, samples: Sequence[tuple[Tensor, Tensor]], *, epochs: int, seed: int) -> NVILA:
    """Train the layers on samples in random order, batches of like length."""
    parameters = [*model.llm.layers.parameters(), *model.llm.norm.parameters()]
    model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(len(samples)) for _ in range(epochs)])
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    model.train()
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = RATE * rate_factor(step, len(batches), floor=0.1)
        embeds = padded([samples[place][0] for place in batch], 0.0, "right")
        labels = padded([samples[place][1] for place in batch], IGNORE, "right")
        loss = model.label_losses(model.llm(embeds), labels).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return model.eval()


def exact(model: NVILA, count: int) -> float:
    """Mean over the kinds of the share of right answers, in percent."""
    return 100 * statistics.mean(accuracy(evaluate(model, seed=7, count=count)).values())


def shown(values: Sequence[float]) -> str:
    spread = f" +- {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=6000, help="of the pool")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--count", type=int, default=100, help="test questions a kind")
    parser.add_argument("--quick", action="store_true", help="a handful of everything")
    parser.add_argument("--out", type=Path, help="the page to write")
    options = parser.parse_args()
    if options.quick:
        options.samples, options.epochs, options.seeds, options.count, options.out = 16, 1, 1, 1, None
    torch.set_num_threads(1)
    began = time.monotonic()
    nano = NVILA.from_pretrained("nano")
    pool = make_pool(nano, options.samples)
    large, small = (
        train(fresh(nano, layers=n, seed=0), pool.read, epochs=options.epochs, seed=0) for n in (LARGE, SMALL)
    )
    found = list(delta_loss(pool.conversations, large, small))
    scores = Scores.of(range(len(found)), pool.sources, found, facts={})
    lines = [
        f"{options.samples} samples, {sum(pool.wrong)} of them with a wrong answer; {options.epochs} epochs.",
        f"The large model: {exact(large, options.count):.1f} %, the small one: {exact(small, options.count):.1f} %.",
        "",
        "| kept | method | wrong answers among them | exact match |",
        "|---|---|---|---|",
    ]
    results = {"all": [], **{(keep, method): [] for keep in KEEP for method in METHODS}}
    faults = {key: [] for key in results}
    for seed in range(1, options.seeds + 1):
        clusters = cluster(pool.conversations, nano, seed=seed)
        for key in results:
            if key == "all":
                kept = np.ones(len(scores), dtype=bool)
            else:
                kept = prune(scores, keep=key[0], method=key[1], seed=seed, clusters=clusters).kept
            places = np.flatnonzero(kept)
            model = train(
                fresh(nano, layers=LARGE, seed=seed), [pool.read[place] for place in places],
                epochs=options.epochs, seed=seed,
            )  # fmt: skip
            results[key].append(exact(model, options.count))
            faults[key].append(100 * float(np.mean(np.array(pool.wrong)[places])))
            print(seed, key, f"{results[key][-1]:.1f} % after {time.monotonic() - began:.0f} s", flush=True)
    for key, values in results.items():
        keep, method = ("100 %", "all") if key == "all" else (f"{100 * key[0]:.0f} %", key[1])
        lines.append(f"| {keep} | {method} | {statistics.mean(faults[key]):.1f} % | {shown(values)} % |")
    print("\n".join(lines))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        command = f"benchmarks/delta_loss_table.py --samples {options.samples} --epochs {options.epochs}"
        head = f"# DeltaLoss on nano\n\n`uv run python {command} --seeds {options.seeds} --count {options.count}`\n\n"
        options.out.write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
