"""``nvila-train report``."""

from pathlib import Path
from typing import Annotated

import typer

from nvila_train.nano.shown_answers import asked
from nvila_train.report import write_report


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run, also one that still goes on.")],
    samples: Annotated[
        int, typer.Option(min=0, help="Held-out drawings of each kind that the model is asked about.")
    ] = 4,
    seed: Annotated[int, typer.Option(help="Of the drawings.")] = 0,
) -> None:
    """Write one page with the curves of a run and what its model answers: report.html, and log.csv."""
    model = run / "model"
    shown = asked(str(model), count=samples, seed=seed) if samples and model.is_dir() else []
    print(write_report(run, shown))
