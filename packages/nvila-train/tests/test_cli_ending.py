"""How ``nvila-train`` ends: one line and an exit code for what the user can mend."""

import subprocess
import sys

import pytest
from nvila_train.cli import main


def ends(monkeypatch: pytest.MonkeyPatch, *words: str) -> int | None:
    monkeypatch.setattr(sys, "argv", ["nvila-train", *words])
    with pytest.raises(SystemExit) as ending:
        main()
    assert not isinstance(ending.value.code, str)
    return ending.value.code


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["run"], 2, "nvila-train: Missing argument 'recipe'."),
        (["run", "nano", "--nope"], 2, "nvila-train: No such option: --nope"),
        (["eval", "--count", "0"], 2, "nvila-train: Invalid value for '--count'"),
        (["run", "nowhere"], 1, "nvila-train: no recipe 'nowhere': give a TOML file, or choose from nano"),
    ],
)
def test_bad_requests_end_in_one_line(words, code, line, monkeypatch, capsys):
    assert ends(monkeypatch, *words) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(line)
    assert printed.err.count("\n") == 1


def test_without_a_command_it_shows_the_commands(monkeypatch, capsys):
    assert not ends(monkeypatch)
    assert "score" in capsys.readouterr().out


def test_version(monkeypatch, capsys):
    assert not ends(monkeypatch, "--version")
    assert capsys.readouterr().out == "nvila-train 0.1.0\n"


def test_the_commands_are_shown_without_torch():
    """A shell that only asks what there is does not wait for torch, transformers or what computes."""
    code = (
        "import sys\nfrom nvila_train.cli import app\n"
        "try:\n    app.app(['run', '--help'], prog_name='nvila-train')\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'PIL'} & sys.modules.keys()))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"
    assert "Run the stages of a recipe" in found.stdout
