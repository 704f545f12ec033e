"""``nvila-train score``."""

import os
from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[
    str, typer.Argument(help="A .json, .jsonl, .csv, .parquet or .tar file, a folder of them, or hub:owner/name.")
]
Large = Annotated[str, typer.Option(help="The large model: 'nano', a checkpoint folder, or a hub repository.")]
Small = Annotated[str, typer.Option(help="The small model.")]
Out = Annotated[Path, typer.Option(help="The Parquet file to make; run again to go on after an interruption.")]
Folder = Annotated[str | None, typer.Option(help="Where relative paths of media begin; by default beside the data.")]
Split = Annotated[str, typer.Option(help="Of a repository on the hub.")]
Device = Annotated[str, typer.Option(help="Where the models run.")]
Positions = Annotated[int, typer.Option(min=1, help="Of the language model in one batch.")]
Shard = Annotated[int, typer.Option(min=1, help="Samples that are written at once.")]
Workers = Annotated[int, typer.Option(min=1, help="Threads that read files and cut tiles.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of the computation; no more than free cores.")]


def score(
    data: Data,
    large: Large,
    small: Small,
    out: Out = Path("scores.parquet"),
    folder: Folder = None,
    split: Split = "train",
    device: Device = "cpu",
    positions: Positions = 2048,
    shard: Shard = 512,
    workers: Workers = 1,
    threads: Threads = 1,
) -> None:
    """Log-probabilities of the answers under a large and a small model. Under torchrun, processes share the samples."""
    import torch
    from nvila_model import NVILA
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from nvila_train.data.source import DataSource
    from nvila_train.delta_loss.score_records import score_records
    from nvila_train.delta_loss.storage.records import Records

    torch.set_num_threads(threads)
    records = Records.open(DataSource(path=data, media=folder, split=split))
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if device == "cuda" and world > 1:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    models = [NVILA.from_pretrained(name, device=device) for name in (large, small)]
    console = Console(stderr=True)
    columns = (TextColumn("scored"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=rank > 0 or not console.is_terminal) as progress:
        starts = range(rank * shard, len(records), world * shard)
        task = progress.add_task("scored", total=sum(min(shard, len(records) - start) for start in starts))
        whole = score_records(
            records, out, *models,
            shard=shard, positions=positions, workers=workers, rank=rank, world=world,
            report=lambda rows: progress.advance(task, rows),
        )  # fmt: skip
    done = f"{len(records)} samples scored in {out}"
    console.print(done if whole else f"process {rank} of {world} is done, others still score", highlight=False)
