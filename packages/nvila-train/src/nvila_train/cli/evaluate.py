"""``nvila-train eval``."""

import json
from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(help="'nano', a checkpoint folder, or a hub repository.")]
Seed = Annotated[int, typer.Option(help="Of the scenes; another seed draws others.")]
Count = Annotated[int, typer.Option(min=1, help="Questions a kind.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Wrong = Annotated[bool, typer.Option("--wrong", help="Also list the questions answered wrong.")]


def evaluate_(model: Model, seed: Seed = 0, count: Count = 50, as_json: AsJson = False, wrong: Wrong = False) -> None:
    """Exact match on fresh scenes, drawn with fonts that were never trained on."""
    from nvila_model import NVILA
    from rich.console import Console
    from rich.table import Table

    from nvila_train.evaluate import Result, accuracy, evaluate
    from nvila_train.nano_recipes import held_out

    loaded = NVILA.from_pretrained(model)
    console = Console(stderr=True)
    with console.status("asking", spinner="line") as status:
        done: list[Result] = []

        def report(found: list[Result]) -> None:
            done.extend(found)
            status.update(f"asked {len(done)} questions")

        results = evaluate(loaded, held_out(seed=seed, count=count), report=report)
    shares = accuracy(results)
    if wrong:
        for result in results:
            if not result.right:
                console.print(
                    f"{result.kind} {result.seed}: {result.question} {result.expected!r} not {result.answer!r}"
                )
    if as_json:
        print(json.dumps({"accuracy": shares, "seed": seed, "count": count}))
        return
    table = Table("kind", "exact match", title=f"{model}, {count} questions a kind, seed {seed}")
    for kind, share in shares.items():
        table.add_row(kind, f"{share:.1%}")
    Console().print(table)
