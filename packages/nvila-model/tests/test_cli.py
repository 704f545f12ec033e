"""The ``nvila`` command: answers, chats, reports."""

import io
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from nvila_model import NVILA
from nvila_model.cli import app
from nvila_tiling import DynamicS2
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

ENOUGH = ("--max-new-tokens", "6")


@pytest.fixture
def tiny(make_model: Callable[..., NVILA], tmp_path: Path) -> str:
    """The folder of a small checkpoint with random weights."""
    make_model().save_pretrained(str(tmp_path / "tiny"))
    return str(tmp_path / "tiny")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.effect_mandelbrot((90, 60), (-2, -1.5, 1, 1.5), 20).convert("RGB").save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """A folder of five frames."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(5):
        Image.new("RGB", (40, 30), (number * 50, 0, 0)).save(folder / f"{number}.png")
    return folder


def nvila(*words: object, stdin: bytes | str | None = None) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], input=stdin, prog_name="nvila")


def answered(*words: object, stdin: bytes | str | None = None) -> dict[str, Any]:
    """The one JSON object that ``nvila ask --json`` prints."""
    result = nvila("ask", *words, "--json", *ENOUGH, stdin=stdin)
    assert result.exit_code == 0, result.stderr
    (line,) = result.stdout.splitlines()
    return json.loads(line)


def test_ask_json(tiny: str, picture: Path) -> None:
    told = answered(picture, "What is this?", "--model", tiny)
    assert told["model"] == tiny
    assert 1 <= told["new_tokens"] <= 6
    assert told["prompt_tokens"] > 0
    assert {"read", "load", "tile", "encode", "prefill", "decode"} <= told["seconds"].keys()
    assert told["tokens_per_second"] is None or told["tokens_per_second"] > 0


def test_answer_equals_the_library(tiny: str, picture: Path) -> None:
    from nvila_model import Image as Picture
    from nvila_model import Sampling

    messages = [{"role": "user", "content": [Picture(picture), "What is this?"]}]
    answer = NVILA.from_pretrained(tiny).generate(messages, Sampling(max_new_tokens=6))
    told = answered(picture, "What is this?", "--model", tiny)
    assert (told["answer"], told["new_tokens"], told["prompt_tokens"]) == (
        answer.text,
        len(answer.ids),
        answer.prompt_tokens,
    )


def test_ask_streams_the_answer_and_sums_up_on_stderr(tiny: str, picture: Path) -> None:
    words = ("ask", picture, "What?", "--model", tiny, *ENOUGH)
    told = answered(picture, "What?", "--model", tiny)
    result = nvila(*words)
    assert result.exit_code == 0
    assert result.stdout == told["answer"] + "\n"
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"nvila: {told['prompt_tokens']} prompt tokens, {told['new_tokens']} new")


def test_longest_answer_fits_the_context_by_default(tiny: str, picture: Path) -> None:
    result = nvila("ask", picture, "What?", "--model", tiny, "--json")
    assert result.exit_code == 0, result.stderr  # 512 tokens and a prompt are more than the context of 512
    told = json.loads(result.stdout)
    assert told["prompt_tokens"] + told["new_tokens"] <= 512


def test_sampling_with_a_seed_repeats(tiny: str) -> None:
    words = ("Say something.", "--model", tiny, "--temperature", "1", "--top-p", "0.9", "--top-k", "50")
    assert answered(*words, "--seed", "7")["answer"] == answered(*words, "--seed", "7")["answer"]


def test_no_media_is_fine(tiny: str) -> None:
    assert answered("Hello?", "--model", tiny)["prompt_tokens"] > 0


def test_several_media_and_patterns(tiny: str, picture: Path, frames: Path) -> None:
    one = answered(picture, "What?", "--model", tiny)["prompt_tokens"]
    two = answered(picture, picture, "What?", "--model", tiny)["prompt_tokens"]
    five = answered(f"{frames}/*.png", "What?", "--model", tiny)["prompt_tokens"]
    assert one < two < five


def test_standard_input_is_an_image_or_a_video(tiny: str, picture: Path) -> None:
    piped = answered("-", "What?", "--model", tiny, stdin=picture.read_bytes())
    assert piped["answer"] == answered(picture, "What?", "--model", tiny)["answer"]


def test_address(tiny: str, picture: Path) -> None:
    handler = partial(Silent, directory=str(picture.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}/{picture.name}"
        told = answered(address, "What?", "--allow-private", "--model", tiny)
        missing = nvila("ask", address + "x", "What?", "--allow-private", "--model", tiny)
        server.shutdown()
        thread.join()
    assert told["answer"] == answered(picture, "What?", "--model", tiny)["answer"]
    assert missing.exit_code == 2
    assert "answered 404" in missing.stderr


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def test_folder_of_frames_is_a_video(tiny: str, frames: Path) -> None:
    four = answered(frames, "What?", "--model", tiny)["prompt_tokens"]
    two = answered(frames, "What?", "--model", tiny, "--frames", "2")["prompt_tokens"]
    assert two < four


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_an_animation_is_a_video(tmp_path: Path, tiny: str, suffix: str) -> None:
    pictures = [Image.new("RGB", (40, 30), (shade, shade, 0)) for shade in (0, 90, 180, 250)]
    path = tmp_path / f"moving.{suffix}"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100)
    seen = json.loads(nvila("inspect", path, "--model", tiny, "--json").stdout)
    assert (seen["kind"], seen["frames"]) == ("video", 4)


def test_pages_that_are_not_looked_at_are_named(tmp_path: Path, tiny: str) -> None:
    pages = [Image.new("L", (40, 30), shade) for shade in (0, 90, 180)]
    pages[0].save(tmp_path / "scan.tif", save_all=True, append_images=pages[1:])
    result = nvila("ask", tmp_path / "scan.tif", "What?", "--model", tiny)
    assert result.exit_code == 0
    assert "scan.tif has 3 pages: the first is used" in result.stderr


def test_frames_without_a_clock_have_numbers(tiny: str, frames: Path) -> None:
    seen = json.loads(nvila("inspect", frames, "--model", tiny, "--json", "--frames", "2").stdout)
    assert "timestamps" not in seen
    assert seen["frame_numbers"] == [0, len(list(frames.iterdir())) - 1]
    assert "2 at number 0, number " in nvila("inspect", frames, "--model", tiny, "--frames", "2").stdout


def test_max_tiles(tiny: str, picture: Path) -> None:
    wide = picture.with_name("wide.png")
    Image.new("RGB", (300, 60)).save(wide)
    least = answered(wide, "What?", "--model", tiny, "--max-tiles", "9")["prompt_tokens"]
    assert least < answered(wide, "What?", "--model", tiny)["prompt_tokens"]


def test_chat_on_a_pipe(tiny: str, picture: Path) -> None:
    lines = f"/image {picture}\nWhat is this?\nAnd now?\n/reset\nHello?\n/quit\nnever asked\n"
    result = nvila("chat", "--model", tiny, *ENOUGH, stdin=lines)
    assert result.exit_code == 0, result.stderr
    assert len(result.stdout.splitlines()) >= 3
    first, second, third = (int(line.split()[1]) for line in result.stderr.splitlines())
    assert first < second
    assert third < first


def test_chat_with_an_adapter(tiny: str, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "modules_to_save": ["llm.norm"]}')
    save_file({"base_model.model.llm.norm.weight": torch.zeros(32)}, folder / "adapter_model.safetensors")
    plain = nvila("chat", "--model", tiny, *ENOUGH, stdin="What?\n")
    adapted = nvila("chat", "--model", tiny, "--adapter", str(folder), *ENOUGH, stdin="What?\n")
    assert adapted.exit_code == 0, adapted.stderr
    assert adapted.stdout != plain.stdout


def test_chat_goes_on_after_a_bad_line(tiny: str, tmp_path: Path) -> None:
    lines = f"/image {tmp_path}/none.png\n/dance\n/image -\nHello?\n"
    result = nvila("chat", "--model", tiny, *ENOUGH, stdin=lines)
    assert result.exit_code == 2
    missing, dance, piped, summary = result.stderr.splitlines()
    assert missing == f"nvila: no file at {tmp_path}/none.png"
    assert "'/dance' is not a command" in dance
    assert "standard input holds the questions" in piped
    assert "prompt tokens" in summary


def test_inspect_image(tiny: str, picture: Path, tmp_path: Path) -> None:
    result = nvila("inspect", picture, "--model", tiny, "--json")
    assert result.exit_code == 0, result.stderr
    seen = json.loads(result.stdout)
    plan = DynamicS2(scales=(28, 56, 84)).plan(90, 60)
    assert seen["size"] == [90, 60]
    assert seen["grids"] == [[grid.rows, grid.cols] for grid in plan.grids]
    assert seen["tiles"] == plan.tiles
    assert seen["tokens"] == NVILA.from_pretrained(tiny).image_tokens(plan)
    assert {"decode", "tile", "vision tower", "compress and project", "prefill"} <= seen["seconds"].keys()
    assert min(seen["seconds"].values()) >= 0


def test_inspect_prompt_equals_ask(tiny: str, picture: Path) -> None:
    seen = json.loads(nvila("inspect", picture, "--model", tiny, "--json").stdout)
    asked = answered(picture, "What?", "--model", tiny)["prompt_tokens"]
    assert asked - seen["prompt_tokens"] == len("What?")


def test_inspect_table(tiny: str, frames: Path) -> None:
    result = nvila("inspect", frames, "--model", tiny)
    assert result.exit_code == 0, result.stderr
    for word in ("frames", "grids", "tokens", "vision tower", "prefill"):
        assert word in result.stdout


def test_inspect_picture(tiny: str, picture: Path, tmp_path: Path) -> None:
    result = nvila("inspect", picture, "--model", tiny, "--picture", tmp_path / "plan.png")
    assert result.exit_code == 0, result.stderr
    with Image.open(tmp_path / "plan.png") as plan:
        assert plan.width >= 90


def test_inspect_by_a_preset_needs_no_weights(picture: Path, frames: Path) -> None:
    image = json.loads(nvila("inspect", picture, "--model", "NVILA-Lite-2B", "--json").stdout)
    assert image["tokens"] == image["tiles"] * 123
    video = json.loads(nvila("inspect", frames, "--model", "NVILA-8B", "--json").stdout)
    assert (video["frames"], video["tokens"]) == (8, 8 * 257)


def test_models() -> None:
    result = nvila("models", "--json")
    assert result.exit_code == 0, result.stderr
    content = json.loads(result.stdout)
    rows = {row["name"]: row for row in content["models"]}
    assert rows["NVILA-8B"]["tokens"] == 3073
    assert rows["NVILA-Lite-8B"]["tokens"] == 7 * 123
    assert rows["NVILA-8B-Video"]["video_tokens"] == 256 // 8 * 257
    for row in content["models"]:
        assert row["fewest_tokens"] <= row["tokens"] <= row["most_tokens"]
        assert row["bytes_w4a16"] < row["bytes_bfloat16"]


def test_models_table() -> None:
    result = nvila("models", "--image", "448x448")
    assert result.exit_code == 0, result.stderr
    assert "NVILA-Lite-15B" in result.stdout
    assert "tokens of 448x448" in result.stdout


def test_version_and_help_do_not_import_torch() -> None:
    for word in ("--version", "--help"):
        code = (
            "import sys; from nvila_model.cli import app\n"
            f"try: app([{word!r}], prog_name='nvila')\n"
            "except SystemExit: pass\n"
            "assert 'torch' not in sys.modules"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout


def test_nothing_asked_shows_the_help() -> None:
    result = nvila()
    assert result.exit_code == 0
    assert "inspect" in result.stdout


def test_terminal_chat_ends_at_end_of_input(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from nvila_model.cli.commands import chat

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("builtins.input", lambda prompt: (_ for _ in ()).throw(EOFError))
    assert list(chat.read_lines()) == []


def test_ask_and_chat_take_the_fields_of_a_request() -> None:
    from nvila_model.cli.commands import ask, chat
    from nvila_model.cli.request import Request

    names = [field.name for field in fields(Request)]
    assert list(signature(ask.ask).parameters) == ["words", *names, "as_json"]
    assert list(signature(chat.chat).parameters) == ["words", *names]


def test_a_command_sees_its_options_as_one_value() -> None:
    import typer
    from nvila_model.cli.request import Request, takes_request

    seen: list[Any] = []

    @takes_request
    def command(*, request: Request, loud: bool = False) -> None:
        """Show."""
        seen.append((request, loud))

    app = typer.Typer()
    app.command()(command)
    words = ["--model", "x", "--top-k", "3", "--stop", "a", "--stop", "b", "--max-tiles", "4", "--fps", "2", "--loud"]
    assert CliRunner().invoke(app, words).exit_code == 0
    request, loud = seen[0]
    assert (request.model, request.source.name, request.source.max_tiles, loud) == ("x", "x", 4, True)
    assert (request.video.fps, request.video.frames) == (2.0, None)
    assert (request.sampling().top_k, request.sampling().stop) == (3, ("a", "b"))
    assert CliRunner().invoke(app, ["--top-k", "-1"]).exit_code == 2
