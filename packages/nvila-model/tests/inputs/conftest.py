"""A small tokenizer in Qwen2's form, as the files of a checkpoint that knows no media tokens."""

import json
from pathlib import Path

import pytest
from nvila_model.inputs.template import QWEN2
from nvila_model.inputs.tokenizer import Tokenizer
from tokenizers import pre_tokenizers

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "[BOS]", "[PAD]")
MERGES = ("h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "u s", "us e", "use r", "Ċ Ċ", "i t")


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``vocab.json``, ``merges.txt``, ``added_tokens.json`` and the settings; no ``tokenizer.json``."""
    folder = tmp_path_factory.mktemp("tokenizer")
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES)]
    added = {token: len(pieces) + place for place, token in enumerate(SPECIAL)}
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    settings = {
        "added_tokens_decoder": {str(index): {"content": token, **flags} for token, index in added.items()},
        "bos_token": "[BOS]",
        "chat_template": QWEN2,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "model_max_length": 128,
        "pad_token": "[PAD]",
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    (folder / "vocab.json").write_text(json.dumps({piece: place for place, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("\n".join(("#version: 0.2", *MERGES, "")))
    (folder / "added_tokens.json").write_text(json.dumps(added))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(tokenizer_folder)
