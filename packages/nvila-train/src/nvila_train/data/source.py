"""Where conversations come from: a path, and nothing that is registered anywhere."""

from pathlib import Path
from typing import Annotated, Literal

from nvila_model.inputs import is_address
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat

Form = Literal["jsonl", "json", "csv", "shards", "parquet", "saved", "hub"]

HUB = "hub:"
"""What the name of a repository of Hugging Face datasets begins with."""

_SUFFIXES: dict[str, Form] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".tar": "shards",
    ".tgz": "shards",
    ".parquet": "parquet",
}


class SourceError(ValueError):
    """A source that cannot be opened, or cannot be mixed with others; the message is one sentence for the user."""


class DataSource(BaseModel):
    """One entry of ``data = [{ path = "train.jsonl" }]``.

    Attributes:
        path: a JSON, JSONL, CSV or TSV file, WebDataset shards (``"shards-{000..011}.tar"``, paths or addresses), each
            also packed with gzip (``.jsonl.gz``, ``.tar.gz``), a Parquet file, a folder of Parquet files, a folder that
            ``Dataset.save_to_disk`` wrote, or ``hub:owner/name``.
        media: where relative paths of images and videos begin; by default the folder that the file is in.
        weight: how often its samples come, against the weights of the other sources. With no weight anywhere an epoch
            holds every row of every source once.
        name: what messages call it; by default the last part of the path.
        split: of a repository on the hub.
        streaming: read Hugging Face datasets and shards from front to back, without fetching or indexing them first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Annotated[str, Field(min_length=1)]
    media: str | None = None
    weight: PositiveFloat | None = None
    name: Annotated[str, Field(min_length=1)] | None = None
    split: str = "train"
    streaming: bool = False

    @property
    def label(self) -> str:
        """What messages call it."""
        return self.name or self.path.removeprefix(HUB).rstrip("/").rpartition("/")[2]

    @property
    def remote(self) -> bool:
        return self.path.startswith(HUB) or is_address(self.path)

    @property
    def folder(self) -> Path | None:
        """Where relative paths of media begin; None where there is no such place."""
        if self.media is not None:
            return Path(self.media)
        return None if self.remote else Path(self.path).parent

    @property
    def form(self) -> Form:
        """How its rows are stored, told from the path. Raises: SourceError."""
        if self.path.startswith(HUB):
            return "hub"
        path = Path(self.path)
        suffix = Path(path.stem if path.suffix.lower() == ".gz" else path.name).suffix.lower()
        if suffix in _SUFFIXES:
            return _SUFFIXES[suffix]
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            return "saved"
        if any(path.glob("*.parquet")):
            return "parquet"
        if any(any(path.glob(ending)) for ending in ("*.tar", "*.tar.gz", "*.tgz")):
            return "shards"
        raise SourceError(
            f"{self.path} holds no data that is known: give a file that ends in {', '.join(_SUFFIXES)} (packed: .gz), "
            f"a folder of .parquet or .tar files, a folder that Dataset.save_to_disk wrote, or {HUB}owner/name"
        )

    def under(self, folder: Path) -> "DataSource":
        """The same source with its relative paths beginning at ``folder``."""
        path = self.path if self.remote else str(folder / self.path)
        media = None if self.media is None else str(folder / self.media)
        return self.model_copy(update={"path": path, "media": media})
