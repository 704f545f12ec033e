"""What does nano lose in few bits, and what does each step of calibration give back?

    OMP_NUM_THREADS=1 uv run python benchmarks/bench_quantize.py [--calibration 24] [--test 48] [--answers 500]
        [--optimized]

Calibration on training scenes of the playground; the answers scored are those of test scenes, which the model is shown
(teacher forcing). "divergence" is the mean Kullback-Leibler divergence of its next-token distributions from those of
the float model, over all positions, with the standard error over conversations; "same" the share of positions with the
same most likely token; "loss" how much worse than by the float model the tokens of the right answer are predicted, with
the standard error of the paired difference; "output error" the mean over layers of the relative error on calibration
rows. Half a minute on one core. Expect rounding to 4 bits to be the largest loss, clipping and scales to take back a
third of it, and 8 bits with a scale a token to be hardly visible.

``--answers`` asks every model that many fresh questions a kind, those of ``nvila-train eval nano --seed 4242``, and
prints the share of exact matches, the difference from the float model in points with the standard error of a paired
comparison, and how many answers were lost and won. A minute a row for 500. At the end AWQ is held against rounding, in
the same groups: the paired differences of the loss and of the answers.

``--optimized`` shows what the kernels of this machine's processor cost besides, which round activations to 8 bits:
after each language model a row of the same model on them, held against itself in floats.
"""

import argparse
from collections.abc import Sequence
from itertools import islice
from typing import cast

import torch
from nvila_kernels import W4A16, W8A8, Int4Linear, QuantPolicy
from nvila_kernels.policy import Scheme
from nvila_kernels.quantization import dequantize_int4
from nvila_model import NVILA, Image, ModelInputs
from nvila_model.checkpoint.quantized import quantized_layers
from nvila_model.cpu import optimize
from nvila_model.network.vision import VisionTower
from nvila_model.quantization.blocks import SIGLIP_FOLDS, quantize_blocks, qwen2_folds, tiles
from nvila_train.evaluate import evaluate
from nvila_train.nano.drawing import Scene, Split, samples
from nvila_train.nano.held_out import held_out
from torch import Tensor, nn
from torch.nn import functional as F

LLM: dict[str, tuple[Scheme, bool]] = {
    "w4a16, rounded": (W4A16(), False),
    "w4a16, AWQ scales": (W4A16(), True),
    "w4a16, clipped": (W4A16(clip=True), False),
    "w4a16, AWQ scales, clipped": (W4A16(clip=True), True),
    "w4a16 in groups of 32, rounded": (W4A16(group_size=32), False),
    "w4a16 in groups of 32, AWQ scales, clipped": (W4A16(group_size=32, clip=True), True),
}
VISION: dict[str, tuple[Scheme, bool]] = {
    "w8a8": (W8A8(), False),
    "w8a8, smoothed": (W8A8(), True),
    "w8a8 static": (W8A8(static=True), False),
    "w8a8 static, smoothed": (W8A8(static=True), True),
}
"""For each row of the table the scheme of every layer, and whether scales are folded."""


def conversations(model: NVILA, split: Split, count: int) -> list[ModelInputs]:
    """The first question of scenes of every kind that has a picture, with its answer."""
    processor = model.needed_processor()

    def conversation(scene: Scene) -> ModelInputs:
        assert scene.image is not None
        question = scene.questions[0]
        asked = {"role": "user", "content": [Image(scene.image), question.question]}
        return processor.for_training([asked, {"role": "assistant", "content": question.answer}])

    return [conversation(scene) for scene in islice(samples(("shapes", "documents", "charts"), split=split), count)]


@torch.no_grad()
def predicted(model: NVILA, inputs: Sequence[ModelInputs]) -> tuple[list[Tensor], Tensor]:
    """Log-probabilities of each conversation, ``[t, vocabulary]``, and the loss of its answer, ``[conversations]``."""
    outputs = [model(each) for each in inputs]
    return [each.logits[0].log_softmax(-1) for each in outputs], torch.stack([each.loss for each in outputs])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibration", type=int, default=24, help="scenes that scales and ranges are fitted to")
    parser.add_argument("--test", type=int, default=48, help="scenes that are scored")
    parser.add_argument("--answers", type=int, default=0, help="questions a kind that are answered")
    parser.add_argument("--optimized", action="store_true", help="the kernels of this processor too")
    parser.add_argument("--seed", type=int, default=4242, help="of those questions")
    options = parser.parse_args()
    model = NVILA.from_pretrained("nano").eval()
    calibration = conversations(model, "train", options.calibration)
    test = conversations(model, "test", options.test)
    exact, losses = predicted(model, test)
    right = answered(model, options)
    print(f"{'':44}  divergence            same     loss {losses.mean():.4f} +      output error", end="")
    print(f"   answers: float {right.float().mean():.2%} of {len(right)}" if options.answers else "")
    scored: dict[str, tuple[Tensor, Tensor]] = {}
    for part, rows in (("llm", LLM), ("vision", VISION)):
        for name, (scheme, folded) in rows.items():
            model = NVILA.from_pretrained("nano").eval()
            error = quantize(model, part, scheme, folded=folded, calibration=calibration)
            found, found_losses = predicted(model, test)
            print(f"{name:44}  {apart(found, exact, found_losses - losses)}   {error:.4f}", end="")
            answers = answered(with_float_products(model), options)
            scored[name] = found_losses, answers
            print(compared(answers, right) if options.answers else "", flush=True)
            if options.optimized and part == "llm":
                model = NVILA.from_pretrained("nano").eval()
                quantize(model, part, scheme, folded=folded, calibration=calibration)
                optimize(model)
                optimized, its_losses = predicted(model, test)
                label = "  on the kernels of this processor"
                print(f"{label:44}  {apart(optimized, found, its_losses - found_losses)}         ", end="")
                print(compared(answered(model, options), answers) if options.answers else "", flush=True)
    for groups in ("", " in groups of 32"):
        rounded, fitted = (scored[f"w4a16{groups}, {how}"] for how in ("rounded", "AWQ scales, clipped"))
        better = fitted[0] - rounded[0]
        spread = better.std() / len(better) ** 0.5
        print(f"{f'AWQ, clipped, against rounded{groups}':44}  loss {better.mean():+.4f} +- {spread:.4f}", end="")
        print(compared(fitted[1], rounded[1]) if options.answers else "")


def apart(found: Sequence[Tensor], exact: Sequence[Tensor], worse: Tensor) -> str:
    """How far distributions are from others, and losses."""
    pairs = list(zip(found, exact, strict=True))
    divergence = torch.stack([F.kl_div(a, b, log_target=True, reduction="batchmean") for a, b in pairs])
    same = torch.cat([a.argmax(-1) == b.argmax(-1) for a, b in pairs]).float().mean()
    spreads = [each.std() / len(each) ** 0.5 for each in (divergence, worse)]
    return f"{divergence.mean():.5f} +- {spreads[0]:.5f}    {same:6.2%}   {worse.mean():+.4f} +- {spreads[1]:.4f}"


def answered(model: NVILA, options: argparse.Namespace) -> Tensor:
    """Which questions of the test set are answered right, bool ``[questions]``."""
    if not options.answers:
        return torch.zeros(0, dtype=torch.bool)
    return torch.tensor(
        [result.right for result in evaluate(model, held_out(seed=options.seed, count=options.answers))]
    )


def with_float_products(model: NVILA) -> NVILA:
    """The same function, 4-bit weights written out once instead of at every product."""
    for name, layer in quantized_layers(model).items():
        if isinstance(layer, Int4Linear):
            linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
            linear.weight.data, linear.bias = dequantize_int4(layer.codes()), cast(nn.Parameter, None)
            if layer.bias is not None:
                linear.bias = nn.Parameter(layer.bias)
            model.set_submodule(name, linear)
    return model


def compared(found: Tensor, exact: Tensor) -> str:
    difference = found.float() - exact.float()
    error = difference.std() / len(difference) ** 0.5
    lost, won = int((difference < 0).sum()), int((difference > 0).sum())
    return f"   {found.float().mean():.2%}: {100 * difference.mean():+.2f} +- {100 * error:.2f} points, -{lost} +{won}"


@torch.no_grad()
def quantize(model: NVILA, part: str, scheme: Scheme, *, folded: bool, calibration: Sequence[ModelInputs]) -> float:
    """Quantize one part; returns the mean output error of its layers."""
    if part == "llm":
        module, name, folds = model.llm, "layers", qwen2_folds(model.llm.head_dim)
        forward, batches = lambda inputs: model.hidden(model.embed(inputs)), calibration
    else:
        module, name, folds = cast(VisionTower, model.vision), "blocks", SIGLIP_FOLDS
        forward, batches = module, tiles(calibration, model.device)
    schemes = QuantPolicy(((f"{name}.*", scheme),)).assign(module)
    chain = {f"{name}.{number}": block for number, block in module.get_submodule(name).named_children()}
    made = quantize_blocks(chain, schemes, folds if folded else (), forward, batches)
    layers = [layer for _, _, report in made if report for layer in report.layers]
    return sum(layer.output_error or 0.0 for layer in layers) / len(layers)


if __name__ == "__main__":
    main()
