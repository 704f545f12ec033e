"""``nvila-train report``."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run, also one that still goes on.")],
    samples: Annotated[
        int, typer.Option(min=0, help="Held-out drawings of each kind that the model is asked about.")
    ] = 4,
    seed: Annotated[int, typer.Option(help="Of the drawings.")] = 0,
) -> None:
    """Write one page with the curves of a run and what its model answers: report.html, and log.csv."""
    from nvila_model import NVILA

    from nvila_train.evaluate import evaluate
    from nvila_train.nano_recipes import held_out, shown
    from nvila_train.report import write_report

    model = run / "model"
    answers = (
        shown(evaluate(NVILA.from_pretrained(str(model)), held_out(seed=seed, count=samples)))
        if samples and model.is_dir()
        else []
    )
    print(write_report(run, answers))
