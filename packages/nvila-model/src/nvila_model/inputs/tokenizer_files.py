"""Tokenizer files in either form, read into one backend and written back.

Checkpoints carry ``tokenizer.json``, or only ``vocab.json``, ``merges.txt`` and ``added_tokens.json`` (with
``tokenizer_config.json`` describing the added tokens). The second form says nothing of the splitting rule;
it is Qwen2's: NFC, the regular expression below, then byte-level BPE. Both forms give equal ids.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from nvila_model.inputs.json_file import JSONFileError, parse_json

#: How Qwen2 cuts text before BPE: contractions, words, single digits, punctuation, line ends, blanks.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_FLAGS = ("lstrip", "normalized", "rstrip", "single_word")


class TokenizerError(ValueError):
    """Tokenizer files that are missing, broken or contradict each other."""


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises TokenizerError naming the file."""
    try:
        return parse_json(path)
    except FileNotFoundError:
        raise TokenizerError(f"no {path.name} in {path.parent}") from None
    except JSONFileError as error:
        raise TokenizerError(f"{error}: fetch the file again") from None


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object. Raises TokenizerError naming the file."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise TokenizerError(f"{path} holds a {type(content).__name__}: expected a JSON object")
    return content


def write_json(path: Path, value: Any) -> None:
    """Write JSON as checkpoints carry it: UTF-8, two blanks, a newline at the end."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def read_optional(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is no such file. Raises TokenizerError naming the file."""
    return read_object(path) if path.is_file() else {}


def read_backend(folder: Path, settings: Mapping[str, Any], special_map: Mapping[str, Any]) -> Backend:
    """The tokenizer of a folder, whichever files hold it, with every added token at its declared id."""
    if (folder / "tokenizer.json").is_file():
        backend = _from_tokenizer_json(folder / "tokenizer.json")
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        backend = _from_vocabulary(folder)
    else:
        raise TokenizerError(f"no tokenizer in {folder}: expected tokenizer.json, or vocab.json with merges.txt")
    for index, token in sorted(_declared(folder, settings, special_map).items()):
        if backend.token_to_id(token.content) is None:
            add = backend.add_special_tokens if token.special else backend.add_tokens
            add([token])
        found = backend.token_to_id(token.content)
        if found != index:
            raise TokenizerError(
                f"the files in {folder} give {token.content!r} id {index}, but the vocabulary puts it at {found}"
            )
    return backend


def write_backend(backend: Backend, folder: Path) -> None:
    """Write ``tokenizer.json``, ``vocab.json``, ``merges.txt`` and ``added_tokens.json``."""
    content = json.loads(backend.to_str())
    write_json(folder / "tokenizer.json", content)
    model = content["model"]
    vocabulary = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
    write_json(folder / "vocab.json", vocabulary)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    write_json(folder / "added_tokens.json", dict(sorted(added.items())))


def describe_added(backend: Backend) -> dict[str, dict[str, Any]]:
    """``added_tokens_decoder`` of ``tokenizer_config.json``: id to the token's flags."""
    described = sorted(backend.get_added_tokens_decoder().items())
    return {
        str(index): {
            "content": token.content,
            **{flag: getattr(token, flag) for flag in _FLAGS},
            "special": token.special,
        }
        for index, token in described
    }


def token_text(value: Any) -> str | None:
    """A special token's text, given as text or as an object with ``content``."""
    return value.get("content") if isinstance(value, Mapping) else value


def _from_tokenizer_json(path: Path) -> Backend:
    try:
        return Backend.from_file(str(path))
    except Exception as error:  # the binding raises bare Exception
        raise TokenizerError(f"{path} is not a tokenizer file: {error}") from None


def _from_vocabulary(folder: Path) -> Backend:
    vocabulary, merges = read_object(folder / "vocab.json"), _read_merges(folder / "merges.txt")
    try:
        model = models.BPE(
            vocab=vocabulary,
            merges=merges,
            continuing_subword_prefix="",
            end_of_word_suffix="",
        )
    except Exception as error:  # the binding raises bare Exception
        raise TokenizerError(f"vocab.json and merges.txt in {folder} do not fit together: {error}") from None
    backend = Backend(model)
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return backend


def _read_merges(path: Path) -> list[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path} is not text: {error}") from None
    if lines and lines[0].startswith("#version"):
        lines = lines[1:]
    pairs = [tuple(line.split(" ")) for line in lines if line]
    if any(len(pair) != 2 for pair in pairs):
        raise TokenizerError(f"{path} has a line that is not two parts and a blank between them")
    return pairs  # pyright: ignore[reportReturnType]


def _declared(folder: Path, settings: Mapping[str, Any], special_map: Mapping[str, Any]) -> dict[int, AddedToken]:
    """Added tokens by id: flags of ``tokenizer_config.json`` first, else bare ``added_tokens.json``."""
    flagged = settings.get("added_tokens_decoder", {})
    try:
        declared = {
            int(index): AddedToken(
                flags["content"],
                special=bool(flags.get("special", False)),
                **{flag: bool(flags[flag]) for flag in _FLAGS if flag in flags},
            )
            for index, flags in flagged.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError):
        file = folder / "tokenizer_config.json"
        raise TokenizerError(f"{file}: added_tokens_decoder must map ids to tokens with their content") from None
    special = _special_texts(settings) | _special_texts(special_map)
    for text, index in read_optional(folder / "added_tokens.json").items():
        if not isinstance(index, int):
            raise TokenizerError(f"{folder / 'added_tokens.json'} gives {text!r} the id {index!r}: expected a number")
        is_special = text in special or (text.startswith("<|") and text.endswith("|>"))
        token = AddedToken(text, special=is_special, normalized=not is_special)
        declared.setdefault(index, token)
    return declared


def _special_texts(entries: Mapping[str, Any]) -> set[str]:
    texts = {token_text(value) for name, value in entries.items() if name.endswith("_token")}
    texts |= {token_text(value) for value in entries.get("additional_special_tokens") or ()}
    return {text for text in texts if text}
