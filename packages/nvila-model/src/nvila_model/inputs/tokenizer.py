"""The checkpoint's tokenizer: text to ids and back, and the ids that mean something.

Ids of special and media tokens differ between checkpoints, so every one is read from the files. A
checkpoint saved before its media tokens were added gets them appended at load, in upstream's order.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from nvila_model.inputs.template import ChatTemplate
from nvila_model.inputs.tokenizer_files import (
    TokenizerError,
    describe_added,
    read_backend,
    read_json,
    read_optional,
    token_text,
    write_backend,
    write_json,
)

SENTINEL_TOKEN = "<vila/sentinel>"
IMAGE_TOKEN = "<image>"
VIDEO_TOKEN = "<vila/video>"

#: In the order in which upstream appends those that a saved tokenizer lacks.
MEDIA_TOKENS = (SENTINEL_TOKEN, IMAGE_TOKEN, VIDEO_TOKEN)

#: Code points that mark places in a text on its way to ids; no text may hold them. The first stands for an answer
#: (``labels``), the second breaks a special token that somebody typed.
ANSWER_MARK, TEXT_MARK = "\ufdd0", "\ufdd1"

_NAMED_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


def clean_text(text: str) -> str:
    """A text of whole characters: halves of surrogate pairs and marks of ours become U+FFFD, as in UTF-8 decoders.

    A byte of a terminal that is not UTF-8 reaches Python as such a half, and JSON may spell one; no tokenizer
    takes it.
    """
    for mark in (ANSWER_MARK, TEXT_MARK):
        text = text.replace(mark, "\ufffd")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


class Tokenizer:
    """Byte-level BPE with the checkpoint's special tokens and chat template.

    Args:
        backend: the tokenizer; media tokens that it lacks are added to it.
        settings: the content of ``tokenizer_config.json``.
        special_map: the content of ``special_tokens_map.json``.
        chat_template: a template, or a name such as "qwen2", that goes before the one in ``settings``.

    Raises: TokenizerError if the files name no end token.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        settings: Mapping[str, Any] | None = None,
        special_map: Mapping[str, Any] | None = None,
        chat_template: str | None = None,
    ) -> None:
        self._backend = backend
        self.settings = dict(settings or {})
        self.special_map = dict(special_map or {})
        missing = [token for token in MEDIA_TOKENS if backend.token_to_id(token) is None]
        backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in missing])
        #: Media tokens that the files lacked, in the order in which they were appended.
        self.appended: tuple[str, ...] = tuple(missing)
        self._named = {name: self._find_named(name) for name in _NAMED_TOKENS}
        eos = self._named["eos_token"]
        if eos is None:
            raise TokenizerError("the tokenizer names no eos_token: add it to tokenizer_config.json")
        self.eos_token: str = eos
        self.template = ChatTemplate(
            chat_template or self.settings.get("chat_template"),
            variables={name: token or "" for name, token in self._named.items()},
        )

    @classmethod
    def from_folder(cls, folder: str | Path, *, chat_template: str | None = None) -> "Tokenizer":
        """Read ``tokenizer.json``, or ``vocab.json`` with ``merges.txt``, and the settings beside it."""
        folder = Path(folder)
        settings = read_optional(folder / "tokenizer_config.json")
        special_map = read_optional(folder / "special_tokens_map.json")
        backend = read_backend(folder, settings, special_map)
        return cls(
            backend,
            settings=_with_template_file(folder, settings),
            special_map=special_map,
            chat_template=chat_template,
        )

    def save(self, folder: str | Path) -> None:
        """Write every file of either form; a second load gives an identical tokenizer."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_backend(self._backend, folder)
        settings = {**self.settings, "added_tokens_decoder": describe_added(self._backend)}
        settings["chat_template"] = self.template.source
        write_json(folder / "tokenizer_config.json", settings)
        named = {name: token for name, token in self._named.items() if token is not None}
        write_json(folder / "special_tokens_map.json", {**named, **self.special_map})

    def encode(self, text: str) -> list[int]:
        """Ids of a text; added tokens in it are recognised. Nothing is put before or after."""
        return self._backend.encode(clean_text(text), add_special_tokens=False).ids

    def as_text(self, text: str, *, keep: Sequence[str] = ()) -> str:
        """Somebody's text, marked so that ``encode_marked`` takes no special token in it for one but ``keep``."""
        return self._special.sub(
            lambda found: found[0] if found[0] in keep else found[0][0] + TEXT_MARK + found[0][1:], text
        )

    def encode_marked(self, text: str) -> list[int]:
        """Ids of a text in which special tokens are placed, and those that ``as_text`` marked stay text.

        What stands between two placed tokens is encoded whole, with special tokens off; a text without marks
        has the ids of ``encode``.
        """
        if TEXT_MARK not in text:
            return self.encode(text)
        ids: list[int] = []
        end = 0
        for found in self._special.finditer(text):
            flags = self._special_flags[found[0]]
            before = text[end : found.start()]
            ids += self._encode_plain(before.rstrip() if flags.lstrip else before)
            ids.append(self._require(found[0]))
            end = found.end()
            while flags.rstrip and text[end : end + 1].isspace():
                end += 1
        return ids + self._encode_plain(text[end:])

    def _encode_plain(self, text: str) -> list[int]:
        text = clean_text(text.replace(TEXT_MARK, ""))
        return self._plain.encode(text, add_special_tokens=False).ids if text else []

    @cached_property
    def _plain(self) -> Backend:
        """A copy that takes special tokens for text; few texts need it."""
        plain = Backend.from_str(self._backend.to_str())
        plain.encode_special_tokens = True
        return plain

    @cached_property
    def _special_flags(self) -> dict[str, AddedToken]:
        added = self._backend.get_added_tokens_decoder().values()
        return {token.content: token for token in added if token.special and len(token.content) > 1}

    @cached_property
    def _special(self) -> re.Pattern[str]:
        longest_first = sorted(self._special_flags, key=len, reverse=True)
        return re.compile("|".join(re.escape(token) for token in longest_first) or r"(?!)")

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Text of ids. Bytes that are not yet a whole character come out as U+FFFD."""
        return self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def token_to_id(self, token: str) -> int | None:
        """The id of one token of the vocabulary, added ones included."""
        return self._backend.token_to_id(token)

    def id_to_token(self, index: int) -> str | None:
        """The token of an id as the vocabulary spells it."""
        return self._backend.id_to_token(index)

    def __len__(self) -> int:
        """Ids in use: one more than the largest."""
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        return max(vocabulary.values()) + 1

    @property
    def vocab_size(self) -> int:
        """Tokens of the vocabulary proper, without the added ones."""
        return self._backend.get_vocab_size(with_added_tokens=False)

    @cached_property
    def sentinel_id(self) -> int:
        """The id of ``<vila/sentinel>``, which stands for an answer when the reference makes labels."""
        return self._require(SENTINEL_TOKEN)

    @cached_property
    def image_id(self) -> int:
        """The id of ``<image>``."""
        return self._require(IMAGE_TOKEN)

    @cached_property
    def video_id(self) -> int:
        """The id of ``<vila/video>``."""
        return self._require(VIDEO_TOKEN)

    @cached_property
    def newline_ids(self) -> tuple[int, ...]:
        """The ids of "\\n", whose embeddings follow each tile and frame."""
        return tuple(self.encode("\n"))

    @property
    def eos_id(self) -> int:
        """The id of the end token that the files name."""
        return self._require(self.eos_token)

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end an answer: the end token, and what the template writes right after an answer."""
        after_answer = self.encode(self.template.end_of_turn)[:1]
        return tuple(dict.fromkeys([self.eos_id, *after_answer]))

    @property
    def bos_id(self) -> int | None:
        """The id of the begin token, None where the files name none. It is never put before a prompt."""
        token = self._named["bos_token"]
        return None if token is None else self._require(token)

    @property
    def pad_token(self) -> str:
        """The padding token; the end token where the files name none."""
        return self._named["pad_token"] or self.eos_token

    @property
    def pad_id(self) -> int:
        """The id of the padding token."""
        return self._require(self.pad_token)

    @property
    def model_max_length(self) -> int | None:
        """The length that ``tokenizer_config.json`` states, if any; some state one without meaning."""
        length = self.settings.get("model_max_length")
        return int(length) if length is not None and length < 1e12 else None

    def _find_named(self, name: str) -> str | None:
        text = token_text(self.settings.get(name)) or token_text(self.special_map.get(name))
        if text is not None and (not isinstance(text, str) or self._backend.token_to_id(text) is None):
            raise TokenizerError(f"{name} is {text!r}, which is not in the vocabulary")
        return text

    def _require(self, token: str) -> int:
        index = self._backend.token_to_id(token)
        assert index is not None, token
        return index


def _with_template_file(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Newer checkpoints keep the chat template beside the settings; it goes before theirs."""
    settings = dict(settings)
    if (folder / "chat_template.jinja").is_file():
        settings["chat_template"] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    elif (folder / "chat_template.json").is_file():
        settings["chat_template"] = read_json(folder / "chat_template.json").get("chat_template")
    several: Any = settings.get("chat_template")
    if isinstance(several, list):
        try:
            named = {entry["name"]: entry["template"] for entry in several}
        except (KeyError, TypeError):
            raise TokenizerError(f"{folder}: each of several chat templates needs a name and a template") from None
        settings["chat_template"] = named.get("default")
    return settings
