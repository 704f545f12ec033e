"""``nvila-train run`` and ``nvila-train eval``."""

import json
import shutil
import sys
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
import typer
from nvila_model.cli.ending import INTERRUPTED, explain
from rich.console import Console
from rich.table import Table

from nvila_train.cli.begin import begin
from nvila_train.cli.check import check_
from nvila_train.cli.estimate import estimate
from nvila_train.cli.progress import Display, tensorboard
from nvila_train.cli.prune import prune
from nvila_train.cli.report import report
from nvila_train.cli.score import score
from nvila_train.dry_run import STEPS, dry_run
from nvila_train.evaluate import Result, accuracy, evaluate
from nvila_train.recipe import Recipe, RecipeError
from nvila_train.run import run as run_recipe
from nvila_train.trainer import distributed
from nvila_train.trainer.device import chosen

app = typer.Typer(
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train NVILA, and measure it.",
)
app.command("check")(check_)
app.command("report")(report)
app.command("score")(score)
app.command("prune")(prune)
app.command("estimate")(estimate)
app.command("begin")(begin)
console = Console(stderr=True)

Model = Annotated[str, typer.Argument(help="'nano', a checkpoint folder, or a hub repository.")]
Seed = Annotated[int, typer.Option(help="Of the scenes; another seed draws others.")]
Count = Annotated[int, typer.Option(min=1, help="Questions a kind.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Wrong = Annotated[bool, typer.Option("--wrong", help="Also list the questions answered wrong.")]


@app.command("run")
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
    torch.set_num_threads(threads)
    path = recipe_path(recipe)
    loaded = Recipe.read(path, device=device)
    if dry:
        show_dry(loaded)
        return
    distributed.join(chosen(loaded.device))
    if out.exists() and not resume and distributed.rank() == 0:
        raise RecipeError(f"{out} exists: add --resume to go on with it, or choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    if distributed.rank() == 0:
        shutil.copyfile(path, out / "recipe.toml")
    if distributed.rank() > 0:
        run_recipe(loaded, out, only=stage)
        return
    write = tensorboard(out / "tensorboard") if board else None
    with Display(console, loaded) as display:

        def tell(record: dict[str, Any]) -> None:
            display(record)
            if write:
                write(record)

        run_recipe(loaded, out, only=stage, report=tell)


def show_dry(recipe: Recipe) -> None:
    """A table of the stages, each a row once it has taken its two steps."""
    table = Table(
        "stage", "trained", "of", "tiles", "positions", title=f"{recipe.name}: {STEPS} steps a stage, no weights"
    )
    for stage in dry_run(recipe):
        sizes = f"{stage.trained / 1e6:,.1f} M", f"{stage.parameters / 1e6:,.1f} M"
        table.add_row(stage.name, *sizes, str(stage.tiles), str(stage.positions))
    Console().print(table)


@app.command("eval")
def evaluate_(model: Model, seed: Seed = 0, count: Count = 50, as_json: AsJson = False, wrong: Wrong = False) -> None:
    """Exact match on fresh scenes, drawn with fonts that were never trained on."""
    from nvila_model.nvila import NVILA

    loaded = NVILA.from_pretrained(model)
    with console.status("asking", spinner="line") as status:
        done: list[Result] = []

        def report(found: list[Result]) -> None:
            done.extend(found)
            status.update(f"asked {len(done)} questions")

        results = evaluate(loaded, seed=seed, count=count, report=report)
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


def recipe_path(name: str) -> Path:
    """The file of a recipe: a path, or the name of a shipped one. Raises: RecipeError."""
    shipped = Path(str(files("nvila_train"))) / "recipes" / f"{name}.toml"
    if Path(name).is_file():
        return Path(name)
    if shipped.is_file():
        return shipped
    names = sorted(path.stem for path in shipped.parent.glob("*.toml"))
    raise RecipeError(f"no recipe {name!r}: give a TOML file or one of {', '.join(names)}")


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nvila-train {version('nvila-train')}")
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Entry point: what a user can mend ends in one line, with code 2 for the command line and 1 for a run."""
    try:
        sys.exit(app(prog_name="nvila-train", standalone_mode=False))
    except typer.Abort:
        end(INTERRUPTED, "interrupted")
    except Exception as error:
        if hasattr(error, "format_message"):  # typer's own errors, of whichever click it stands on
            end(*explain(error))
        if isinstance(error, (ValueError, OSError, RuntimeError)):
            end(1, str(error))
        raise


def end(code: int, message: str) -> NoReturn:
    print(f"nvila-train: {message}", file=sys.stderr)
    sys.exit(code)
