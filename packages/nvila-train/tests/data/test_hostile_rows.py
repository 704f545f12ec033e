"""Rows, tars and files that people really have: a bad one ends itself, in one sentence, and nothing else."""

import base64
import gzip
import io
import json
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
from nvila_train.data import ConversationDataset, DataSource, SampleError, SourceError
from nvila_train.data.checks.row_faults import check
from nvila_train.data.stored import json_files, offsets, tar_shards
from nvila_train.data.stored.csv_rows import CsvRows
from nvila_train.data.stored.open_rows import open_rows
from nvila_train.data.stored.shard_names import shard_names
from nvila_train.data.stored.stream import Stream
from nvila_train.trainee import Trainee

CASES = Path(__file__).parents[5] / "shared" / "cases" / "rows"
HUMAN, GPT = {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def outcomes(source: str | Path, **options: Any) -> list[str]:
    """What becomes of each row: ``sound``, or the sentence of its fault."""
    dataset = ConversationDataset(DataSource(path=str(source), **options), shuffle=False)
    found: list[str] = []
    for row in range(len(dataset)):
        try:
            assert dataset[row].messages
            found.append("sound")
        except SampleError as error:
            found.append(str(error).partition(": ")[2])
    assert all(len(sentence) < 500 and "\n" not in sentence for sentence in found)
    return found


@pytest.mark.skipif(not CASES.is_dir(), reason="no ../shared/cases")
def test_the_cases_of_bug_reports(trainee: Trainee) -> None:
    expected = json.loads((CASES / "expected.json").read_text())
    source = DataSource(path=str(CASES / "rows.jsonl"))
    found = check(source, trainee.model)
    faulty = {fault.row for fault in found.faults}
    assert found.rows == len(expected) == 15
    for number, right in expected.items():
        if number != "5":  # either is right there
            assert (int(number) in faulty) == right.startswith("fault"), (number, right)
    problems = {fault.row: fault for fault in found.faults}
    assert problems[3].field == "image[1]"
    assert problems[13].problem.endswith("write forward slashes")
    assert len([each for each in outcomes(CASES / "rows.jsonl") if each == "sound"]) == 15 - len(faulty)


ODD = [
    ("[null]", "row: is list"),
    ("null", "row: is NoneType"),
    ("3", "row: is int"),
    ('"text"', "row: is str"),
    ("[" * 100_000, "row: is nested too deeply"),
    ('{"conversations": ' + "[" * 500 + "]" * 500 + "}", "row: is nested too deeply"),
    ('{"a": ' + "9" * 5000 + "}", "row: is not JSON"),
    ('{"conversations": {"from": 1}}', "conversations: is missing"),
    ('{"conversations": [[1]]}', "conversations[0]: is not an object"),
    ('{"conversations": [{"from": ["human"], "value": "x"}]}', "conversations[0].from: ['human']"),
    ('{"conversations": [{"from": "human", "value": {"a": 1}}]}', "conversations[0].value: is dict"),
    ('{"conversations": "[{]"}', "conversations: is text that is not JSON"),
    (
        '{"messages": [{"role": "user", "content": [{"type": "sound", "sound": "x"}]}]}',
        "conversations[0].value[0]: is",
    ),
    ('{"messages": [{"role": "tool", "content": "x"}]}', "conversations[0].from: 'tool'"),
    ('{"messages": [{"role": "user", "content": null}]}', "conversations[0].value: is NoneType"),
    (json.dumps({"conversations": [HUMAN, GPT], "image": {"a": 1}}), "image: is dict, not a path"),
    (json.dumps({"conversations": [HUMAN, GPT], "image": [["a.png"]]}), "image[0]: is list, not a path"),
    (json.dumps({"conversations": [HUMAN, GPT], "image": 7}), "image: is int, not a path"),
    (json.dumps({"conversations": [HUMAN, GPT], "image": "x" * 5000}), "image: no file at"),
    (
        json.dumps({"conversations": [HUMAN, GPT], "image": "data:image/png;base64,?" + "A" * 9000}),
        "image: its data URI",
    ),
    (json.dumps({"conversations": [HUMAN, GPT], "image": "data:image/png"}), "image: its data URI has no comma"),
    (json.dumps({"conversations": [HUMAN, GPT], "image": "\ud800.png"}), "image: no file at"),
    ('{"conversations": [{"from": "human", "value": "\\ud800 x"}, {"from": "gpt", "value": "\\udfff"}]}', "sound"),
    ('\ufeff{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}', "sound"),
    (json.dumps({"conversations": json.dumps([HUMAN, GPT])}), "sound"),
    (json.dumps({"conversations": [HUMAN, GPT], "image": []}), "sound"),
    (json.dumps({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}), "sound"),
]


@pytest.mark.parametrize(("line", "said"), ODD)
def test_a_bad_line_ends_itself(tmp_path: Path, line: str, said: str) -> None:
    sound = json.dumps({"conversations": [HUMAN, GPT]})
    path = tmp_path / "a.jsonl"
    path.write_bytes("\n".join([sound, line, "", sound]).encode("utf-8", "surrogatepass") + b"\n")
    found = outcomes(path)
    assert found[0] == found[2] == "sound"
    assert found[1].startswith(said)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"conversations": "\xff\xfe"}\n\x00\x01\x02 garbage, and more of it\n')
    assert [found.startswith("row: is not JSON") for found in outcomes(path)] == [True, True]


def test_a_line_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_files, "LONGEST", 1000)
    path = tmp_path / "a.jsonl"
    sound = json.dumps({"conversations": [HUMAN, GPT]})
    path.write_text(f'{sound}\n{{"a": "{"x" * 2000}"}}\n{sound}\n')
    assert outcomes(path) == ["sound", "row: takes 0 MB > 0 MB: keep its pictures in files of their own", "sound"]


def test_rows_are_counted_as_people_count(tmp_path: Path) -> None:
    """By lines, blank ones too."""
    path = tmp_path / "a.jsonl"
    path.write_text("\n \n" + json.dumps({"conversations": [HUMAN, GPT]}) + "\r\n\r\n{}\n")
    dataset = ConversationDataset(path, shuffle=False)
    assert dataset[0].row == 3
    with pytest.raises(SampleError, match=r"^a\.jsonl row 5: conversations: is missing"):
        dataset[1]


def tar(order: tuple[str, ...] = ("json", "png"), *, count: int = 10, name: str = "{:05}") -> bytes:
    """A shard of ``count`` samples of a record and what stands for a picture."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as made:
        for number in range(count):
            talk = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": str(number)}]
            for ending in order:
                data = json.dumps({"conversations": talk}).encode() if ending == "json" else b"x" * 700
                info = tarfile.TarInfo(f"{name.format(number)}.{ending}")
                info.size = len(data)
                made.addfile(info, io.BytesIO(data))
    return file.getvalue()


def headers(data: bytes) -> list[int]:
    return [place for place in range(0, len(data), 512) if data[place + 257 : place + 262] == b"ustar"]


def streamed(path: Path) -> list[str]:
    """What becomes of the rows of a shard that is read from front to back."""
    stream = open_rows(DataSource(path=str(path), streaming=True))
    assert isinstance(stream, Stream)
    found: list[str] = []
    for stored in stream:
        try:
            found.append("sound" if len(stream.read(stored)["image"]) == 1 else "fault")
        except (ValueError, KeyError):
            found.append("fault")
    return found


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("order", [("json", "png"), ("png", "json")])
@pytest.mark.parametrize("place", [2, 9, 18])
@pytest.mark.parametrize("byte", [101, 126, 150, 156, 400])
def test_one_damaged_byte_costs_one_sample(tmp_path: Path, order: tuple[str, ...], place: int, byte: int) -> None:
    """Ten samples, one byte of one header: nine are read, and the place of the tenth is named."""
    pytest.importorskip("webdataset")
    data = bytearray(tar(order))
    data[headers(bytes(data))[place] + byte] ^= 0x55
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    found = outcomes(path)
    assert len(found) == 10
    assert [each == "sound" for each in found].count(True) == 9
    assert found[place // 2].startswith("shard: a.tar is damaged or cut short between bytes")
    assert streamed(path) == ["fault" if number == place // 2 else "sound" for number in range(10)]


@pytest.mark.parametrize("order", [("json", "png"), ("png", "json")])
@pytest.mark.parametrize("place", [2, 9])
def test_a_damaged_name_loses_no_other_sample(tmp_path: Path, order: tuple[str, ...], place: int) -> None:
    data = bytearray(tar(order))
    data[headers(bytes(data))[place] + 3] ^= 0xD5
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    found = outcomes(path)
    assert found.count("sound") == 9
    assert any(each.startswith("shard: a.tar is damaged") for each in found)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_a_tar_cut_anywhere_says_so(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    data = tar()
    end = headers(data)[-1] + 512 + 700
    rng, path = Random(0), tmp_path / "a.tar"
    for cut in [rng.randrange(600, end) for _ in range(20)]:
        path.write_bytes(data[:cut])
        found = outcomes(path)
        assert found.count("sound") == sum(start + 3 * 512 + 700 <= cut for start in headers(data)[::2])
        assert found[-1] != "sound", cut
        assert streamed(path)[-1] == "fault"


def test_tars_behind_each_other_are_read_to_the_end(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar(count=3) + tar(count=2, name="b{}"))
    assert outcomes(tmp_path / "a.tar") == ["sound"] * 5


@pytest.mark.parametrize("order", [("json", "png"), ("png", "json"), ("0.png", "json", "1.png")])
@pytest.mark.parametrize("name", ["img.v1.{:04}", "a.b/c.{}", "1.2.{}", "{:05}"])
def test_names_with_dots(tmp_path: Path, order: tuple[str, ...], name: str) -> None:
    (tmp_path / "a.tar").write_bytes(tar(order, name=name))
    rows = tar_shards.ShardRows([tmp_path / "a.tar"])
    assert [len(rows[row]["image"]) for row in range(len(rows))] == [len(order) - 1] * 10
    assert [rows[row]["conversations"][1]["value"] for row in range(10)] == [str(row) for row in range(10)]


@pytest.mark.parametrize("value", [{"a": 1}, [["0.png"]], [{"b": None}], [None], 3, "none.png"])
def test_odd_values_in_a_shard(tmp_path: Path, value: Any) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as made:
        for number, image in enumerate((value, "0.png")):
            data = json.dumps({"conversations": [HUMAN, GPT], "image": image}).encode()
            for ending, content in (("json", data), ("0.png", b"x")):
                info = tarfile.TarInfo(f"{number}.{ending}")
                info.size = len(content)
                made.addfile(info, io.BytesIO(content))
    (tmp_path / "a.tar").write_bytes(file.getvalue())
    first, second = outcomes(tmp_path / "a.tar")
    assert first.startswith("image")
    assert second == "sound"


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("s-{5..1}.tar", r"\{5..1\} counts down: write \{1..5\}"),
        ("s-{0..999999999}.tar", "names more than 100000 shards"),
        ("s-{0..999}-{0..999}.tar", "names more than 100000 shards"),
    ],
)
def test_ranges_are_bounded(pattern: str, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        shard_names(pattern)


def test_packed_files(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"conversations": [HUMAN, GPT]}) + "\n" for _ in range(5))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(tar()))
    (tmp_path / "b.tgz").write_bytes(gzip.compress(tar(count=2)))
    assert outcomes(tmp_path / "a.jsonl.gz") == ["sound"] * 5
    assert outcomes(tmp_path / "a.tar.gz") == ["sound"] * 10
    assert len(open_rows(DataSource(path=str(tmp_path)))) == 12
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(lines.encode() * 1000)[:-100])
    with pytest.raises(SourceError, match=r"c.jsonl.gz is damaged or cut short after \d+ unpacked bytes"):
        open_rows(DataSource(path=str(tmp_path / "c.jsonl.gz")))
    (tmp_path / "d.jsonl.gz").write_bytes(b"not packed")
    with pytest.raises(SourceError, match=r"d\.jsonl\.gz is damaged"):
        open_rows(DataSource(path=str(tmp_path / "d.jsonl.gz")))


def test_csv_files(tmp_path: Path) -> None:
    """Quoted commas and lines, blank lines, a byte order mark; against the csv module."""
    import csv

    texts = [("What?", "Red."), ('A "quoted", one\nof two lines', "x,y"), ("é\r\nü", "z")]
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(["question", "answer"])
    for row in texts:
        writer.writerow(row)
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbf" + file.getvalue().encode() + b"\r\n")
    rows = CsvRows(path)
    assert [tuple(turn["value"] for turn in rows[row]["conversations"]) for row in range(len(rows))] == texts
    assert [rows.number(row) for row in range(3)] == [2, 3, 5]
    (tmp_path / "b.tsv").write_text('conversations\timages\n"' + json.dumps([HUMAN, GPT]).replace('"', '""') + '"\t\n')
    assert outcomes(tmp_path / "b.tsv") == ["sound"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("question,answer\na,b,c\nHi,Ho\n", "row: has 3 fields, the header 2"),
        ("question,answer\n,b\nHi,Ho\n", "conversations[0].value: the question is empty"),
        ("question,answer\na,\nHi,Ho\n", "conversations[1].value: the answer is empty"),
        ('question,answer,image\na,b,"[1"\nHi,Ho,\n', "row: is not JSON"),
        ("question,answer,image\na,b,none.png\nHi,Ho,\n", "image: no file at"),
    ],
)
def test_bad_rows_of_csv(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    first, second = outcomes(tmp_path / "a.csv")
    assert first.startswith(said)
    assert second == "sound"


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "\x00\n"])
def test_csv_without_the_columns(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(SourceError, match=r"a\.csv"):
        open_rows(DataSource(path=str(tmp_path / "a.csv")))


@pytest.mark.parametrize("text", ["[" * 100_000, "\x00", "{}", '"a"', "9" * 5000])
def test_a_json_file_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(SourceError, match=r"a\.json"):
        open_rows(DataSource(path=str(tmp_path / "a.json")))


def test_pictures_in_the_record(tmp_path: Path, pictures: Path) -> None:
    """A data URI is the picture's bytes; so are the parts of chat messages, in their order."""
    data = (pictures / "tiny.png").read_bytes()
    uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    content = [
        {"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": "and"},
        {"type": "image", "image": "wide.png"}, {"type": "text", "text": "?"},
    ]  # fmt: skip
    row = {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "Both."}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    dataset = ConversationDataset(DataSource(path=str(tmp_path / "a.jsonl"), media=str(pictures)))
    first, and_, second, mark = dataset[0].messages[0]["content"]
    assert (first.source, and_, second.source, mark) == (data, "and", pictures / "wide.png", "?")


def test_random_damage_ends_no_source(
    tmp_path: Path, write: Callable[..., Path], records: list[dict[str, Any]]
) -> None:
    """Any byte of a shard or of lines may be wrong: rows are sound or faulty, nothing else is raised."""
    rng = Random(7)
    lines = write(records).read_bytes()
    for number in range(40):
        data = bytearray((lines, tar(count=4))[number % 2])
        for _ in range(rng.randrange(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path = tmp_path / ("x.jsonl", "x.tar")[number % 2]
        path.write_bytes(data[: rng.randrange(len(data) // 2, len(data) + 1)])
        with suppress(SourceError):  # where the first header is damaged
            outcomes(path)


def test_a_damaged_cache_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offsets, "LARGE", 1)
    (tmp_path / "a.tar").write_bytes(tar())
    assert outcomes(tmp_path / "a.tar") == ["sound"] * 10
    (kept,) = (tmp_path / "cache").rglob("*.npy")
    kept.write_bytes(kept.read_bytes()[:40])
    assert outcomes(tmp_path / "a.tar") == ["sound"] * 10
    assert kept.stat().st_size > 40


def test_a_stream_that_breaks_says_where() -> None:
    def rows(start: int) -> Any:
        yield from range(start, 3)
        raise KeyError("gone")

    with pytest.raises(SourceError, match="a streamed source ends at row 4: KeyError: 'gone'"):
        Stream(rows).window(0, 10)
