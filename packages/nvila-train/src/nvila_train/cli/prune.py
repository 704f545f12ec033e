"""``nvila-train prune``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from nvila_train.delta_loss.prune import By, Method
from nvila_train.delta_loss.score import Normalize

if TYPE_CHECKING:
    import numpy as np

    from nvila_train.delta_loss.records import Records
    from nvila_train.delta_loss.scores import Scores

ScoresFile = Annotated[Path, typer.Argument(help="Made by nvila-train score.")]
Keep = Annotated[float, typer.Option(help="Share of each source that stays, above 0 and at most 1.")]
Out = Annotated[Path, typer.Option(help="The subset to write, a record a line.")]
ByOption = Annotated[By, typer.Option("--by", help="Prune each source for itself, or all samples together.")]
MethodOption = Annotated[Method, typer.Option("--method", help="What decides.")]
NormalizeOption = Annotated[Normalize, typer.Option("--normalize", help="tokens: means over the answer, not sums.")]
PageFile = Annotated[Path | None, typer.Option("--page", help="A page of histograms and samples; by default OUT.html.")]
Seed = Annotated[int, typer.Option(min=0, help="Of random draws and clusters.")]
Data = Annotated[Path | None, typer.Option(help="The scored file, if it has moved.")]
Folder = Annotated[Path | None, typer.Option(help="Where its media are, if they have moved.")]
Model = Annotated[str, typer.Option(help="For clusters: the model whose vision tower looks.")]
Clusters = Annotated[int, typer.Option(min=1, help="For clusters: how many.")]


def prune(
    scores: ScoresFile,
    keep: Keep,
    out: Out = Path("subset.jsonl"),
    by: ByOption = "source",
    method: MethodOption = "deltaloss",
    normalize: NormalizeOption = "none",
    page: PageFile = None,
    seed: Seed = 0,
    data: Data = None,
    folder: Folder = None,
    model: Model = "nano",
    clusters: Clusters = 100,
) -> None:
    """Write the samples that are worth learning: of each source those at which the large model is ahead."""
    from nvila_train.delta_loss.page import page as page_of
    from nvila_train.delta_loss.prune import groups
    from nvila_train.delta_loss.prune import prune as choose
    from nvila_train.delta_loss.scores import Scores

    table = Scores.read(scores)
    records = scored_records(table, data, folder)
    found = clusters_of(records, table, model, clusters, seed) if method == "cluster" else None
    pruned = choose(table, keep=keep, by=by, method=method, normalize=normalize, seed=seed, clusters=found)
    # As a whole or not at all: a subset that is cut short looks like one.
    unfinished = out.with_name(f"{out.name}.new")
    unfinished.write_bytes(b"".join(records.lines[row] + b"\n" for row in table.row[pruned.kept]))
    unfinished.replace(out)
    page = page or out.with_suffix(".html")
    settings = {"data": str(records.path), "keep": f"{keep:g} by {by}", "method": method, "normalize": normalize}
    page.write_text(page_of(table, pruned, records, by=by, normalize=normalize, settings=settings), encoding="utf-8")
    title = f"{int(pruned.kept.sum())} of {len(table)} in {out}, shown in {page}"
    shown = Table("source", "samples", "stay", "cut", title=title)
    for name, places in groups(table, by).items():
        cut = f"{pruned.cuts[name]:.4g}" if name in pruned.cuts else ""
        shown.add_row(name, str(len(places)), str(int(pruned.kept[places].sum())), cut)
    Console(stderr=True).print(shown)


def scored_records(table: "Scores", data: Path | None, folder: Path | None) -> "Records":
    """The file that was scored. Raises: DeltaLossError if it is gone or has changed since."""
    from nvila_train.delta_loss.errors import DeltaLossError
    from nvila_train.delta_loss.records import Records

    path = data or Path(table.facts["data"])
    records = Records.read(path, folder=folder or (path.parent if data else Path(table.facts["folder"])))
    if records.digest != table.facts["digest"]:
        raise DeltaLossError(f"{path} is not what was scored: pass the scored file with --data, or score it again")
    return records


def clusters_of(records: "Records", table: "Scores", model: str, count: int, seed: int) -> "np.ndarray":
    """The cluster of every scored row."""
    from nvila_model.nvila import NVILA

    from nvila_train.delta_loss.cluster import cluster

    conversations = (records.conversation(int(row)) for row in table.row)
    return cluster(conversations, NVILA.from_pretrained(model), count=count, seed=seed)
