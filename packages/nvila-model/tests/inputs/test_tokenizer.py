"""The tokenizer against transformers', in both forms of files, and what it refuses."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nvila_model.inputs.tokenizer import MEDIA_TOKENS, Tokenizer
from nvila_model.inputs.tokenizer_files import TokenizerError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

TEXT = st.text(max_size=40) | st.lists(
    st.sampled_from(
        ["hello", " world", "\n", "\n\n", "  ", "<image>", "<|im_end|>", "it's", "42", "é", "e\u0301", "你", "😀"]
    ),
    max_size=8,
).map("".join)


@pytest.fixture(scope="module")
def peer(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    folder = tmp_path_factory.mktemp("saved")
    tokenizer.save(folder)
    return AutoTokenizer.from_pretrained(folder)


@settings(max_examples=150, deadline=None)
@given(text=TEXT)
def test_ids_and_text_equal_transformers(tokenizer: Tokenizer, peer: PreTrainedTokenizerBase, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids == peer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == peer.decode(ids, clean_up_tokenization_spaces=False)
    skipped = peer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert tokenizer.decode(ids, skip_special_tokens=True) == skipped


@settings(max_examples=50, deadline=None)
@given(text=st.text(alphabet=st.characters(max_codepoint=0x2FF, exclude_categories=["Cs"]), max_size=30))
def test_decoding_undoes_encoding_up_to_nfc(tokenizer: Tokenizer, text: str) -> None:
    again = tokenizer.decode(tokenizer.encode(text))
    assert tokenizer.encode(again) == tokenizer.encode(text)


def test_media_tokens_that_are_missing_are_appended_in_order(tokenizer: Tokenizer) -> None:
    assert tokenizer.appended == MEDIA_TOKENS
    last = tokenizer.token_to_id("[PAD]")
    assert last is not None
    assert (tokenizer.sentinel_id, tokenizer.image_id, tokenizer.video_id) == (last + 1, last + 2, last + 3)
    assert len(tokenizer) == last + 4


def test_media_tokens_of_the_files_keep_their_ids(tokenizer_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tokenizer_folder, tmp_path / "some"))
    added = json.loads((folder / "added_tokens.json").read_text())
    image = max(added.values()) + 1
    (folder / "added_tokens.json").write_text(json.dumps({**added, "<image>": image}))
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.appended == ("<vila/sentinel>", "<vila/video>")
    assert (tokenizer.image_id, tokenizer.sentinel_id, tokenizer.video_id) == (image, image + 1, image + 2)


def test_saving_twice_writes_the_same_bytes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "first")
    Tokenizer.from_folder(tmp_path / "first").save(tmp_path / "second")
    (tmp_path / "first" / "tokenizer.json").rename(tmp_path / "aside.json")
    Tokenizer.from_folder(tmp_path / "first").save(tmp_path / "third")
    (tmp_path / "aside.json").rename(tmp_path / "first" / "tokenizer.json")
    names = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert "tokenizer.json" in names
    assert "vocab.json" in names
    for name in names:
        first = (tmp_path / "first" / name).read_bytes()
        assert (tmp_path / "second" / name).read_bytes() == first
        assert (tmp_path / "third" / name).read_bytes() == first


def test_special_ids_come_from_the_files(tokenizer: Tokenizer) -> None:
    assert tokenizer.eos_id == tokenizer.token_to_id("<|im_end|>")
    assert tokenizer.pad_id == tokenizer.token_to_id("[PAD]")
    assert tokenizer.bos_id == tokenizer.token_to_id("[BOS]")
    assert tokenizer.newline_ids == (tokenizer.token_to_id("Ċ"),)
    assert tokenizer.model_max_length == 128


def test_the_end_of_a_turn_is_an_end_token_too(tokenizer_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tokenizer_folder, tmp_path / "other_eos"))
    settings_ = json.loads((folder / "tokenizer_config.json").read_text())
    settings_["eos_token"] = {"content": "<|endoftext|>"}
    settings_["pad_token"] = None
    (folder / "tokenizer_config.json").write_text(json.dumps(settings_))
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.eos_ids == (tokenizer.token_to_id("<|endoftext|>"), tokenizer.token_to_id("<|im_end|>"))
    assert tokenizer.pad_id == tokenizer.eos_id


def test_a_template_beside_the_settings_goes_first(tokenizer_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tokenizer_folder, tmp_path / "jinja"))
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    assert Tokenizer.from_folder(folder).template.render([{"role": "user", "content": "Hi"}]) == "Hi!"


def _broken(folder: Path, name: str, content: str | None) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("merges.txt", None, "no tokenizer in .*: expected tokenizer.json, or vocab.json with merges.txt"),
        ("vocab.json", "{", "vocab.json is not JSON"),
        ("merges.txt", "#version\na b c\n", "merges.txt has a line that is not two parts"),
        ("merges.txt", "#version\nh e\nzz yy\n", "vocab.json and merges.txt in .* do not fit together"),
        ("added_tokens.json", '{"<far>": 9999}', "give '<far>' id 9999, but the vocabulary puts it at"),
        ("tokenizer_config.json", "{}", "names no eos_token: add it to tokenizer_config.json"),
        ("tokenizer_config.json", '{"eos_token": "<gone>"}', "eos_token is '<gone>', which is not in the vocabulary"),
        ("tokenizer.json", '{"model": 1}', "tokenizer.json is not a tokenizer file"),
    ],
)
def test_broken_files_are_refused(
    tokenizer_folder: Path, tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    folder = Path(shutil.copytree(tokenizer_folder, tmp_path / "broken"))
    _broken(folder, name, content)
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_folder(folder)
