"""``nvila-train estimate``."""

import json
import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from nvila_train.estimate.step import Cost

GIB = 2**30


def estimate(
    recipe: Annotated[str, typer.Argument(help="A recipe, or a model: a preset's name, 'nano', or a folder.")],
    card: Annotated[
        str | None, typer.Option(help="Memory of a card, such as 24GB; says whether the step fits.")
    ] = None,
    vision: Annotated[
        str | None, typer.Option(help="full, layernorm, lora or frozen; the recipe's by default.")
    ] = None,
    llm: Annotated[str | None, typer.Option(help="full, lora, qlora or frozen; the recipe's by default.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Conversations that are run together.")] = 1,
    image: Annotated[str, typer.Option(help="Size of the image in each.")] = "1344x896",
    text: Annotated[int, typer.Option(min=2, help="Tokens of text in each, a quarter of them learnt.")] = 256,
    weights: Annotated[
        str | None, typer.Option(help="Format of weights that learn, fp32 or bf16; the recipe's by default.")
    ] = None,
    recompute: Annotated[str | None, typer.Option(help="none, selective or block; the recipe's by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Memory and operations of one training step, tried on tensors without memory."""
    from rich.console import Console

    from nvila_train.estimate.recipe_step import read, recomputation
    from nvila_train.estimate.step import RESERVE, Load, estimate_step
    from nvila_train.recipe import Tune

    room = None if card is None else card_bytes(card)
    config, ways, precision, recipes_recompute, (dtype, frozen) = read(recipe, weights)
    ways = Tune.model_validate(ways.model_dump() | {"vision": vision or ways.vision, "llm": llm or ways.llm})
    load = Load(samples=samples, image=size(image), text=text, answer=max(1, text // 4))
    cost = estimate_step(
        config, load, vision=ways.vision, llm=ways.llm, projector=ways.projector, rank=ways.rank,
        precision=precision, recompute=recomputation(recompute) if recompute else recipes_recompute, dtype=dtype,
        frozen=frozen,
    )  # fmt: skip
    if as_json:
        fits = None if room is None else cost.fits(room)
        print(json.dumps({"recipe": recipe, "vision": ways.vision, "llm": ways.llm, **asdict(cost), "fits": fits}))
        return
    Console().print(table(f"{recipe}, vision {ways.vision}, llm {ways.llm}", cost))
    if room is not None:
        verdict = "fits" if cost.fits(room) else "does not fit"
        print(
            f"{verdict} {card}: {cost.peak / GIB:.1f} GiB and {RESERVE / GIB:.0f} GiB for the driver and its libraries"
        )


def size(text: str) -> tuple[int, int]:
    """Width and height. Raises: RecipeError."""
    from nvila_train.recipe_errors import RecipeError

    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found:
        raise RecipeError(f"image {text!r} is no size: write it as 1344x896")
    return int(found[1]), int(found[2])


def card_bytes(text: str) -> int:
    """Bytes of ``24GB``; as on a card's box, its GB are 2^30 bytes. Raises: RecipeError."""
    from nvila_train.recipe_errors import RecipeError

    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?Gi?B", text, re.IGNORECASE)
    if not found:
        raise RecipeError(f"card {text!r} is no size: write it as 24GB")
    return round(float(found[1]) * GIB)


def table(title: str, cost: "Cost") -> "Table":
    from rich.table import Table

    rows = Table("part", "GiB", title=title)
    for part in ("weights", "gradients", "optimizer", "activations", "peak"):
        rows.add_row(part, f"{getattr(cost, part) / GIB:.2f}")
    rows.caption = (
        f"{cost.tokens} tokens, {cost.learning / 1e6:.1f} M numbers learn, {cost.flops / 1e12:.2f} TFLOP a step"
    )
    return rows
