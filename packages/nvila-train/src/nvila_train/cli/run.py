"""``nvila-train run``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nvila_train.cli.ending import end

if TYPE_CHECKING:
    from nvila_train.recipe import Recipe


def run(
    recipe: Annotated[str, typer.Argument(help="A TOML file, or the name of a shipped recipe such as 'nano'.")],
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/nano"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what is in the folder.")] = False,
    stage: Annotated[str | None, typer.Option(help="Run this stage alone, on top of those that are complete.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each process; no more than free cores.")] = 1,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda; the recipe's by default.")] = None,
    board: Annotated[bool, typer.Option("--tensorboard", help="Also write OUT/tensorboard.")] = False,
    dry: Annotated[bool, typer.Option("--dry-run", help="Two steps of each stage on shapes alone; OUT stays.")] = False,
) -> None:
    """Run the stages of a recipe. Under torchrun, processes share each batch."""
    import torch
    from rich.console import Console

    from nvila_train.cli.progress import Display, tensorboard
    from nvila_train.recipe import Recipe, recipe_path
    from nvila_train.run import run as run_recipe
    from nvila_train.run_folder import RunFolder
    from nvila_train.trainer import distributed
    from nvila_train.trainer.device import chosen
    from nvila_train.trainer.stopping import Stopped

    torch.set_num_threads(threads)
    path = recipe_path(recipe)
    loaded = Recipe.read(path, device=device)
    if dry:
        show_dry(loaded)
        return
    distributed.join(chosen(loaded.device))
    console = Console(stderr=True)
    first = distributed.rank() == 0

    def say(sentence: str) -> None:
        if first:
            console.print(sentence, highlight=False, markup=False, soft_wrap=True)

    try:
        with RunFolder(out, path, resume=resume, say=say):
            write = tensorboard(out / "tensorboard") if board and first else None
            with Display(console, loaded) as display:

                def show(record: dict[str, Any]) -> None:
                    display(record)
                    if write:
                        write(record)

                run_recipe(loaded, out, only=stage, report=show if first else None, say=say)
    except Stopped as stopped:
        if not first:
            raise typer.Exit(128 + stopped.signal) from None
        end(128 + stopped.signal, str(stopped))


def show_dry(recipe: "Recipe") -> None:
    """A table of the stages, each a row once it has taken its two steps."""
    from rich.console import Console
    from rich.table import Table

    from nvila_train.dry_run import STEPS, dry_run

    table = Table(
        "stage", "trained", "of", "tiles", "positions", title=f"{recipe.name}: {STEPS} steps a stage, no weights"
    )
    for stage in dry_run(recipe):
        sizes = f"{stage.trained / 1e6:,.1f} M", f"{stage.parameters / 1e6:,.1f} M"
        table.add_row(stage.name, *sizes, str(stage.tiles), str(stage.positions))
    Console().print(table)
