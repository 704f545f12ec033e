"""Bad input ends in one line on standard error and an exit code, never in a traceback."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from nvila_model import NVILA
from nvila_model.cli import app
from nvila_model.cli.ending import exit_code
from PIL import Image
from typer.testing import CliRunner


@pytest.fixture
def tiny(make_model: Callable[..., NVILA], tmp_path: Path) -> Path:
    make_model().save_pretrained(str(tmp_path / "tiny"))
    return tmp_path / "tiny"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.effect_mandelbrot((90, 60), (-2, -1.5, 1, 1.5), 20).convert("RGB").save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Twenty noisy frames, encoded."""
    path = tmp_path / "clip.mp4"
    generator = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(20):
            pixels = generator.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def refused(*words: object, code: int = 2, stdin: bytes | None = None) -> str:
    """The one line that a command ends with."""
    result = CliRunner().invoke(app, [str(word) for word in words], input=stdin, prog_name="nvila")
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("nvila: ")
    return line.removeprefix("nvila: ")


def bomb() -> bytes:
    """A PNG of 30000 x 30000 pixels in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("command", ["ask", "inspect"])
def test_missing_file(command: str, tmp_path: Path) -> None:
    words = [tmp_path / "none.png", "What?"] if command == "ask" else [tmp_path / "none.png"]
    assert refused(command, *words) == f"no file at {tmp_path}/none.png"


def test_pattern_without_a_match(tmp_path: Path) -> None:
    assert refused("ask", f"{tmp_path}/*.png", "What?") == f"no file matches {tmp_path}/*.png"


def test_text_called_png(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not a picture at all")
    assert "text.png is not an image" in refused("ask", tmp_path / "text.png", "What?")
    (tmp_path / "voice.wav").write_bytes(b"RIFF\x24\0\0\0WAVEfmt ")
    assert "voice.wav is sound: give images or videos" in refused("ask", tmp_path / "voice.wav", "What?")


@pytest.mark.parametrize("name", ["empty.png", "empty.mp4"])
def test_zero_bytes(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    assert f"{name} is empty (0 bytes)" in refused("ask", tmp_path / name, "What?")


def test_corrupt_image(picture: Path) -> None:
    data = picture.read_bytes()
    picture.write_bytes(data[: len(data) // 2])
    assert "picture.png is cut short or corrupt" in refused("ask", picture, "What?")


def test_decompression_bomb(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(bomb())
    assert "unpacks to more than" in refused("ask", tmp_path / "bomb.png", "What?")


def test_truncated_video(clip: Path) -> None:
    data = clip.read_bytes()
    clip.write_bytes(data[: len(data) // 2])
    assert "cut short" in refused("ask", clip, "What?")


def test_text_called_mp4(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a film at all")
    assert "is not a video" in refused("ask", tmp_path / "text.mp4", "What?")


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    assert "holds no frames" in refused("ask", tmp_path / "nothing", "What?")


def test_nothing_on_standard_input() -> None:
    assert "standard input is empty (0 bytes)" in refused("ask", "-", "What?", stdin=b"")


def test_address_that_does_not_answer() -> None:
    words = ("ask", "http://127.0.0.1:9/x.png", "What?")
    assert "cannot fetch http://127.0.0.1:9/x.png" in refused(*words, "--allow-private")
    assert "in a private network: allow_private=True (--allow-private)" in refused(*words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("x" * 300 + ".png", "What?"), "no file at xxx"),
        (("a\0b.png", "What?"), "no file at a b.png"),
        (("http://user:secret@[::1/x.png", "What?"), "the address is malformed"),
        (("data:image/png;base64,!!!!", "What?"), "the image in a data URI is not base64"),
        (("-", "-"), "standard input cannot be both a medium and the question"),
        (("/dev/zero", "What?"), "/dev/zero is a pipe or a device, not a file"),
    ],
)
def test_words_that_name_no_medium(words: tuple[str, ...], said: str) -> None:
    assert said in refused("ask", *words)


def test_limits_are_named_and_can_be_set(picture: Path) -> None:
    assert "(90 x 60, Limits.pixels): shrink it" in refused("ask", picture, "What?", "--limit", "pixels=100")
    assert "'pixel=100' is not a limit: write NAME=VALUE" in refused("ask", picture, "What?", "--limit", "pixel=100")


def test_question_left_out(picture: Path) -> None:
    assert "no question" in refused("ask", picture)
    assert "Missing argument" in refused("ask")
    assert "the question is empty" in refused("ask", picture, " ")


def test_unknown_model(picture: Path) -> None:
    assert "no model 'nowhere'" in refused("ask", picture, "What?", "--model", "nowhere")
    assert "its weights are Efficient-Large-Model/NVILA-8B" in refused("ask", "What?", "--model", "NVILA-8B")


@pytest.mark.parametrize(
    "file", ["config.json", "llm/config.json", "llm/model.safetensors", "mm_projector/config.json"]
)
def test_checkpoint_that_lacks_a_file(file: str, tiny: Path) -> None:
    (tiny / file).unlink()
    assert file in refused("ask", "What?", "--model", tiny)


def test_checkpoint_without_tokenizer(tiny: Path) -> None:
    for name in ("tokenizer.json", "vocab.json"):
        (tiny / "llm" / name).unlink()
    assert "no tokenizer in" in refused("ask", "What?", "--model", tiny)


def test_checkpoint_of_another_kind(tiny: Path) -> None:
    (tiny / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert "'llama' is not supported" in refused("ask", "What?", "--model", tiny)


def test_checkpoint_with_an_unknown_projector(tiny: Path) -> None:
    (tiny / "mm_projector" / "config.json").write_text(json.dumps({"mm_projector_type": "magic"}))
    assert "'magic' is not supported" in refused("ask", "What?", "--model", tiny)


def test_too_many_tokens(tiny: Path, picture: Path) -> None:
    line = refused("ask", picture, "What?", "--model", tiny, "--max-new-tokens", "5000")
    assert "> 512: lower max_tiles" in line


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--dtype", "float8", "'--dtype': 'float8' is not one of"),
        ("--top-p", "2", "--top-p"),
        ("--top-p", "0", "above 0"),
        ("--temperature", "-1", "--temperature"),
        ("--max-new-tokens", "none", "--max-new-tokens"),
        ("--frames", "0", "--frames"),
        ("--device", "abacus", "device 'abacus' cannot be used"),
        ("--device", "cuda:99", "device 'cuda:99' cannot be used"),
        ("--max-tiles", "3", "max_tiles 3"),
        ("--stop", "", "stop"),
        ("--colour", "red", "--colour"),
    ],
)
def test_unknown_option_values(option: str, value: str, said: str, tiny: Path) -> None:
    assert said in refused("ask", "What?", "--model", tiny, option, value)


def test_inspect_refusals(picture: Path, tiny: Path) -> None:
    nowhere = picture.parent / "none" / "plan.png"
    assert "there is no folder" in refused("inspect", picture, "--model", tiny, "--picture", nowhere)
    shutil.copy(picture, picture.with_name("second.png"))
    assert "matches 2 files: give one" in refused("inspect", f"{picture.parent}/*.png", "--model", tiny)


def test_models_refusal() -> None:
    assert "is not a size" in refused("models", "--image", "wide")


def test_unknown_command() -> None:
    assert "No such command 'dance'" in refused("dance")


def raising(error: BaseException) -> Callable[[], None]:
    def run() -> None:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "nvila: interrupted\n"),
        (RuntimeError("a\nb"), 1, "nvila: unexpected RuntimeError: a b (set NVILA_TRACEBACK=1 to see where)\n"),
        (MemoryError("3 GiB"), 1, "nvila: out of memory: use fewer tiles or frames"),
    ],
)
def test_ending(error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(raising(error)) == code
    assert capsys.readouterr().err.startswith(said)


def test_traceback_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVILA_TRACEBACK", "1")
    with pytest.raises(RuntimeError, match="why"):
        exit_code(raising(RuntimeError("why")))


def test_interrupted_answer_is_shown_as_far_as_it_came(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nvila_model.generation.decoding import steps

    def interrupted(*arguments: Any) -> Iterator[torch.Tensor]:
        for count, drawn in enumerate(steps(*arguments)):
            if count == 3:
                raise KeyboardInterrupt
            yield drawn

    monkeypatch.setattr("nvila_model.generation.decoding.steps", interrupted)
    result = CliRunner().invoke(app, ["ask", "What?", "--model", str(tiny), "--json"])
    assert result.exit_code == 130
    assert json.loads(result.stdout)["finish"] == "interrupted"
    assert result.stderr == "nvila: interrupted\n"


def process(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it."""
    command = [sys.executable, "-c", "from nvila_model.cli import main; main()", *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}
    )


def test_real_process_answers_quietly(tiny: Path, picture: Path) -> None:
    done = process("ask", picture, "What?", "--model", tiny, "--max-new-tokens", 4, "--json")
    assert done.returncode == 0, done.stderr
    assert "answer" in json.loads(done.stdout)
    assert done.stderr == ""


def test_real_process_refuses_in_one_line(tmp_path: Path, clip: Path, tiny: Path) -> None:
    data = clip.read_bytes()
    clip.write_bytes(data[: len(data) * 2 // 3])
    done = process("ask", clip, "What?", "--model", tiny)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


def test_real_process_interrupted(tiny: Path) -> None:
    command = [sys.executable, "-c", "from nvila_model.cli import main; main()", "chat", "--model", str(tiny)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs are deaf to it
    with subprocess.Popen([*command, "--max-new-tokens", "2"], text=True, preexec_fn=heard, **pipes) as chat:
        assert chat.stdin
        assert chat.stderr
        chat.stdin.write("Hello?\n")
        chat.stdin.flush()
        assert "prompt tokens" in chat.stderr.readline()  # now it waits for the next question
        chat.send_signal(signal.SIGINT)
        assert chat.stderr.read() == "nvila: interrupted\n"
    assert chat.returncode == 130


def test_reader_that_goes_away(tiny: Path) -> None:
    script = f"{sys.executable} -c 'from nvila_model.cli import main; main()' --help | true"
    done = subprocess.run(script, shell=True, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
