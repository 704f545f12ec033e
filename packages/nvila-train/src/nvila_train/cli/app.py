"""The ``nvila-train`` command and its parts.

Torch takes seconds to import, so commands import what computes inside their functions; ``--help``, ``--version`` and
every mistake in an option are answered without it.
"""

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from nvila_train.cli.begin import begin
from nvila_train.cli.check import check_
from nvila_train.cli.ending import INTERRUPTED, end, end_with
from nvila_train.cli.estimate import estimate
from nvila_train.cli.evaluate import evaluate_
from nvila_train.cli.prune import prune
from nvila_train.cli.report import report
from nvila_train.cli.run import run
from nvila_train.cli.score import score

app = typer.Typer(
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train NVILA, and measure it.",
)
app.command("run")(run)
app.command("eval")(evaluate_)
app.command("check")(check_)
app.command("report")(report)
app.command("score")(score)
app.command("prune")(prune)
app.command("estimate")(estimate)
app.command("begin")(begin)


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
    """Entry point."""
    try:
        sys.exit(app(prog_name="nvila-train", standalone_mode=False))
    except typer.Abort:
        end(INTERRUPTED, "interrupted")
    except Exception as error:
        end_with(error)
