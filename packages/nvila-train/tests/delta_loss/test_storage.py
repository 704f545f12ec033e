"""What tells data apart, and how a part of it is written."""

import io
import json
import tarfile
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nvila_train.data import DataSource
from nvila_train.data.stored.tar_shards import ShardRows
from nvila_train.delta_loss.choices import DeltaLossError
from nvila_train.delta_loss.storage import table_form
from nvila_train.delta_loss.storage.records import Records
from nvila_train.delta_loss.storage.table_form import outlined
from nvila_train.delta_loss.storage.tar_form import Tars
from nvila_train.delta_loss.subset import subset_path, write_subset

TURNS = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "nö"}]


def picture(last: int, length: int = 300) -> bytes:
    return bytes(length - 1) + bytes([last])


def made(values: list[str], files: list[bytes | None]) -> Any:
    """A table with bytes in a column, in a list, and in a column of pictures."""
    datasets = pytest.importorskip("datasets")
    columns = {
        "conversations": [TURNS] * len(values), "id": values, "video": files, "videos": [[each] for each in files],
        "image": [None if each is None else {"bytes": each, "path": None} for each in files],
        "when": [date(2024, 1, 2)] * len(values),
    }  # fmt: skip
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image(decode=False))


def shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for number, (name, data) in enumerate(members.items()):
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = len(data), 0o600 + number, number
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def test_a_table_is_known_by_its_rows(tmp_path: Path) -> None:
    values, files = list("abc"), [picture(1), None, picture(2)]
    whole = made(values, files)
    whole.to_parquet(tmp_path / "one.parquet")
    whole.save_to_disk(tmp_path / "saved")
    (tmp_path / "two").mkdir()
    whole.select([0]).to_parquet(tmp_path / "two" / "0.parquet")
    whole.select([1, 2]).to_parquet(tmp_path / "two" / "1.parquet")
    digest = Records.open(tmp_path / "one.parquet").digest
    assert digest == Records.open(tmp_path / "saved").digest == Records.open(tmp_path / "two").digest
    others = [
        (list("abd"), files),
        (list("bac"), files),
        (values, [picture(3), None, picture(2)]),
        (values, [picture(1, 301), None, picture(2)]),
        (values, [picture(1), b"", picture(2)]),
        (values[:2], files[:2]),
    ]
    digests = {digest}
    for number, other in enumerate(others):
        made(*other).save_to_disk(tmp_path / f"{number}")
        digests.add(Records.open(tmp_path / f"{number}").digest)
    assert len(digests) == 1 + len(others)


def test_bytes_anywhere_in_a_table(tmp_path: Path) -> None:
    """Lists, objects and nothing at all, in slices that begin in the middle; against plain Python."""
    pyarrow = pytest.importorskip("pyarrow")
    data = [picture(number, 60 + number) for number in range(8)]
    values = [
        None,
        [],
        [{"file": data[0], "many": [data[1], None, b""]}, None],
        [{"file": None, "many": None}, {"file": data[2], "many": data[3:]}],
    ]

    def plain(value: Any) -> Any:
        match value:
            case bytes():
                return [len(value), value[-64:].hex()]
            case list():
                return [plain(each) for each in value]
            case dict():
                return {name: plain(each) for name, each in value.items()}
            case _:
                return value

    for kind in (pyarrow.binary(), pyarrow.large_binary()):
        whole = pyarrow.array(values, pyarrow.list_(pyarrow.struct({"file": kind, "many": pyarrow.list_(kind)})))
        for start in range(4):
            assert outlined(whole[start:]) == plain(values[start:])
            assert outlined(whole[:start]) == plain(values[:start])
        assert outlined(pyarrow.array([None, None], kind)) == [None, None]
        assert outlined(pyarrow.array([], kind)) == []


def test_shards_are_known_by_their_members(tmp_path: Path) -> None:
    members = {"0.json": b"{}", "0.png": picture(1), "1.json": b"[]"}
    digest = Records.open(shard(tmp_path / "a.tar", members)).digest
    (tmp_path / "two").mkdir()
    shard(tmp_path / "two" / "0.tar", {name: members[name] for name in ("0.json", "0.png")})
    shard(tmp_path / "two" / "1.tar", {"README": b"", "1.json": b"[]"})
    assert Records.open(tmp_path / "two").digest == digest
    others = [
        members | {"0.json": b"[]"},
        members | {"0.png": picture(2)},
        members | {"0.png": picture(1, 301)},
        {"0.json": b"{}", "0.jpg": picture(1), "1.json": b"[]"},
        {"1.json": b"[]", "0.json": b"{}", "0.png": picture(1)},
    ]
    digests = [Records.open(shard(tmp_path / f"{number}.tar", other)).digest for number, other in enumerate(others)]
    assert len({digest, *digests}) == 1 + len(others)
    (tmp_path / "apart").mkdir()
    twice = [shard(tmp_path / "apart" / f"{number}.tar", {f"0.{number}": b""}) for number in range(2)]
    one = shard(tmp_path / "together.tar", {"0.0": b"", "0.1": b""})
    assert Tars(ShardRows(twice)).digest() != Tars(ShardRows([one])).digest()


def test_files_inside_are_not_read_to_know_the_data(tmp_path: Path) -> None:
    """Holes of 40 GB in the place of pictures: nothing that read them could pass."""
    pyarrow = pytest.importorskip("pyarrow")
    size = 40 * 2**30
    with (tmp_path / "hole").open("wb") as file:
        file.truncate(size)
    data = pyarrow.memory_map(str(tmp_path / "hole")).read_buffer()
    ends = pyarrow.py_buffer(np.array([0, size], dtype=np.int64))
    array = pyarrow.Array.from_buffers(pyarrow.large_binary(), 1, [None, ends, data])
    assert outlined(pyarrow.StructArray.from_arrays([array], ["bytes"])) == [{"bytes": [size, "00" * 64]}]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("0.png")
        info.size = size
        tar.addfile(info)
        start = tar.offset
    with (tmp_path / "a.tar").open("r+b") as file:
        file.truncate(start + size + 1024)
    assert len(Tars(ShardRows([tmp_path / "a.tar"])).digest()) == 64


def test_a_subset_of_shards_has_the_same_members(tmp_path: Path) -> None:
    """Names that need headers of their own, a file of no sample within one, and members of any size."""
    long = "d" * 120
    members = {
        "a/0.json": b"{}", "README": b"no sample", "a/0.left.PNG": bytes(700), "a/1.json": b"{}",
        f"{long}/2.json": b"{}", f"{long}/2.png": bytes(512), "a/3.json": b"{}",
    }  # fmt: skip
    records = Records.open(shard(tmp_path / "a.tar", members))
    out = tmp_path / "out.tar"
    write_subset(records, [0, 2, 3], out)
    assert out.stat().st_size % tarfile.RECORDSIZE == 0
    with tarfile.open(out) as ours, tarfile.open(tmp_path / "a.tar") as theirs:
        kept = [name for name in members if name != "a/1.json"]
        assert ours.getnames() == kept
        for name in kept:
            one, other = ours.getmember(name), theirs.getmember(name)
            assert (one.mode, one.mtime, one.size) == (other.mode, other.mtime, other.size)
            assert ours.extractfile(one).read() == members[name]
    assert len(Records.open(out)) == 3


def test_samples_of_one_name_do_not_become_one(tmp_path: Path) -> None:
    (tmp_path / "mix").mkdir()
    for name in ("a", "b"):
        shard(tmp_path / "mix" / f"{name}.tar", {"0.json": b"{}", "1.json": b"{}"})
    records = Records.open(tmp_path / "mix")
    write_subset(records, [0, 1, 2], tmp_path / "out.tar")
    assert len(Records.open(tmp_path / "out.tar")) == 3
    with pytest.raises(
        DeltaLossError,
        match=r"^two samples called 1, of which row 4 is one, would become one in .*: give samples of different shards",
    ):
        write_subset(records, [0, 1, 3], tmp_path / "again.tar")
    assert not list(tmp_path.glob("again*"))


def test_a_subset_of_a_table_keeps_what_its_columns_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    parquet = pytest.importorskip("pyarrow.parquet")
    made(list("abcde"), [picture(number) for number in range(5)]).save_to_disk(tmp_path / "saved")
    records = Records.open(tmp_path / "saved")
    write_subset(records, [0, 2, 3], tmp_path / "out.parquet")
    (again,) = datasets.load_dataset("parquet", data_files=str(tmp_path / "out.parquet")).values()
    assert again.features == datasets.load_from_disk(tmp_path / "saved").features
    assert again["id"][:] == ["a", "c", "d"]
    assert parquet.read_metadata(tmp_path / "out.parquet").num_row_groups == 1
    monkeypatch.setattr(table_form, "PART", 2)
    monkeypatch.setattr(table_form, "GROUP", 1000)  # the bytes of one row and a half
    write_subset(records, [4, 3, 2, 1, 0], tmp_path / "groups.parquet")
    metadata = parquet.read_metadata(tmp_path / "groups.parquet")
    assert [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)] == [2, 2, 1]


@pytest.mark.parametrize(
    "text", ['{"a":  1}\r\n\n{"b": "\\u00e9"} \n{"c": 3}', '{"a":  1}\n{"b": "\\u00e9"} \n{"c": 3}\n']
)
def test_lines_keep_their_bytes(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(text.encode())
    write_subset(Records.open(tmp_path / "a.jsonl"), [0, 1], tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == b'{"a":  1}\n{"b": "\\u00e9"} \n'


def test_an_array_becomes_lines(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"a": "é"}, 2, {"c": 3}]))
    write_subset(Records.open(tmp_path / "a.json"), [0, 2], tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == '{"a": "é"}\n{"c": 3}\n'


def test_where_a_subset_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mix").mkdir()
    Path("a.jsonl").write_text("{}\n")
    for name in ("mix/0.tar", "mix/1.tar", "0.tar"):
        shard(Path(name), {"0.json": b"{}"})
    lines, one, folder, some = map(Records.open, ("a.jsonl", "0.tar", "mix", "mix/{0..1}.tar"))
    assert subset_path(lines) == Path("subset.jsonl")
    assert subset_path(lines, Path("x/b.NDJSON")) == Path("x/b.NDJSON")
    assert subset_path(folder) == Path("subset.tar")
    assert subset_path(some, Path("mix/2.tar")) == Path("mix/2.tar")
    with pytest.raises(
        DeltaLossError,
        match=r"^b\.json does not end as what is written to it: a subset of a\.jsonl goes to a file that ends in "
        r"\.jsonl or \.ndjson$",
    ):
        subset_path(lines, Path("b.json"))
    for records, name in ((lines, "a.jsonl"), (one, "mix/../0.tar"), (folder, "mix/2.tar"), (some, "mix/1.tar")):
        with pytest.raises(DeltaLossError, match=r"is part of what was scored, .*: choose another --out$"):
            subset_path(records, Path(name))


def test_a_subset_that_is_not_whole_is_not_there(tmp_path: Path) -> None:
    class Full:
        def write(self, rows: Any, out: Path) -> None:
            out.write_text("a part")
            raise OSError(28, "No space left on device")

    (tmp_path / "out.jsonl").write_text("what was there")
    records = Records(source=DataSource(path="x.jsonl"), rows=[], storage=Full())
    with pytest.raises(OSError, match="No space left"):
        write_subset(records, [], tmp_path / "out.jsonl")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("out.jsonl", "what was there")]
