"""The command line's table of contents, and the one place where a command ends."""

from __future__ import annotations

import sys
from contextvars import copy_context
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from nvila_model.cli.commands import ask, bench, chat, inspect, models, quantize
from nvila_model.cli.ending import exit_code


class Commands(TyperGroup):
    """A group of commands that ends in an exit code and at most one line, whatever goes wrong inside."""

    def main(self, *args: Any, **options: Any) -> Any:
        options["standalone_mode"] = False
        context = copy_context()  # limits that a command sets end with it
        sys.exit(exit_code(lambda: context.run(super(Commands, self).main, *args, **options)))


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Ask NVILA about images and videos.",
)
app.command("ask")(ask.ask)
app.command("chat")(chat.chat)
app.command("inspect")(inspect.inspect)
app.command("models")(models.models)
app.command("quantize")(quantize.quantize)
app.command("bench")(bench.bench)


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nvila {version('nvila-model')}")
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
    """Entry point of the ``nvila`` command."""
    app(prog_name="nvila")
