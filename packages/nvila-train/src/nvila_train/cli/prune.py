"""``nvila-train prune``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nvila_train.delta_loss.choices import By, Method, Normalize

if TYPE_CHECKING:
    import numpy as np

    from nvila_train.delta_loss.score_table import Scores
    from nvila_train.delta_loss.storage.records import Records

ScoresFile = Annotated[Path, typer.Argument(help="Made by nvila-train score.")]
Keep = Annotated[float, typer.Option(help="Share of each source that stays, above 0 and at most 1.")]
Out = Annotated[
    Path | None,
    typer.Option(help="The subset: .jsonl, .parquet or .tar, as the data is; by default subset with that ending."),
]
ByOption = Annotated[By, typer.Option("--by", help="Prune each source for itself, or all samples together.")]
MethodOption = Annotated[Method, typer.Option("--method", help="What decides.")]
NormalizeOption = Annotated[Normalize, typer.Option("--normalize", help="tokens: means over the answer, not sums.")]
PageFile = Annotated[Path | None, typer.Option("--page", help="A page of histograms and samples; by default OUT.html.")]
Seed = Annotated[int, typer.Option(min=0, help="Of random draws and clusters.")]
Data = Annotated[str | None, typer.Option(help="The scored data, if it has moved.")]
Folder = Annotated[str | None, typer.Option(help="Where its media are, if they have moved.")]
Model = Annotated[str, typer.Option(help="For clusters: the model whose vision tower looks.")]
Clusters = Annotated[int, typer.Option(min=1, help="For clusters: how many.")]


def prune(
    scores: ScoresFile,
    keep: Keep,
    out: Out = None,
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
    from rich.console import Console
    from rich.table import Table

    from nvila_train.delta_loss.page.review_page import page as page_of
    from nvila_train.delta_loss.prune import groups
    from nvila_train.delta_loss.prune import prune as choose
    from nvila_train.delta_loss.score_table import Scores
    from nvila_train.delta_loss.subset import subset_path, write_subset

    table = Scores.read(scores)
    records = scored_records(table, data, folder)
    out = subset_path(records, out, scores=scores)
    found = clusters_of(records, table, model, clusters, seed) if method == "cluster" else None
    pruned = choose(table, keep=keep, by=by, method=method, normalize=normalize, seed=seed, clusters=found)
    write_subset(records, table.row[pruned.kept].tolist(), out)
    page = page or out.with_suffix(".html")
    settings = {"data": records.source.path, "keep": f"{keep:g} by {by}", "method": method, "normalize": normalize}
    page.write_text(page_of(table, pruned, records, by=by, normalize=normalize, settings=settings), encoding="utf-8")
    title = f"{int(pruned.kept.sum())} of {len(table)} in {out}, shown in {page}"
    shown = Table("source", "samples", "stay", "cut", title=title)
    for name, places in groups(table, by).items():
        cut = f"{pruned.cuts[name]:.4g}" if name in pruned.cuts else ""
        shown.add_row(name, str(len(places)), str(int(pruned.kept[places].sum())), cut)
    Console(stderr=True).print(shown)


def scored_records(table: "Scores", data: str | None, folder: str | None) -> "Records":
    """What was scored. Raises: SourceError if it is gone, DeltaLossError if it has changed since."""
    from nvila_train.data.source import DataSource
    from nvila_train.delta_loss.choices import DeltaLossError
    from nvila_train.delta_loss.storage.records import Records

    path = data or table.facts["data"]
    media = folder or (None if data else table.facts["folder"] or None)
    records = Records.open(DataSource(path=path, media=media, split=table.facts.get("split", "train")))
    if records.digest != table.facts["digest"]:
        raise DeltaLossError(f"{path} is not what was scored: pass the scored data with --data, or score it again")
    return records


def clusters_of(records: "Records", table: "Scores", model: str, count: int, seed: int) -> "np.ndarray":
    """The cluster of every scored row."""
    from nvila_model import NVILA

    from nvila_train.delta_loss.cluster import cluster

    conversations = (records.sample(row).messages for row in table.row.tolist())
    return cluster(conversations, NVILA.from_pretrained(model), count=count, seed=seed)
