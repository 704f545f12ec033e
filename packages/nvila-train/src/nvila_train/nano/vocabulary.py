"""A small byte-level vocabulary in Qwen2's form, taken from what the playground says.

The words of questions and the answers that are a choice (colours, directions) are a token each; what is read off a
picture is spelled. A model of this size copies letters from where it sees them long before it knows the words that
they make. There are no merges, so no token stands for a part of a word.

The files are those of a published checkpoint's ``llm/`` folder: Qwen2's split (every digit alone), its special
tokens, and the media tokens in upstream's order. The chat template has no system turn: at this size every
position counts.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from nvila_model.inputs import MEDIA_TOKENS, QWEN2_SPLIT, Tokenizer
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from nvila_train.nano.dialogue import CAPTION_REQUESTS
from nvila_train.nano.drawing import Scene
from nvila_train.nano.drawing.words import NAMED

SPECIAL_TOKENS: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "[BOS]", "[PAD]", *MEDIA_TOKENS)

CHAT_TEMPLATE: Final = (
    "{% for message in messages if message['content'] is not none %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def make_tokenizer(scenes: Iterable[Scene], *, size: int, context: int) -> Tokenizer:
    """Take the words of questions, answers and texts of scenes, the most frequent first.

    Args:
        size: tokens without the special ones, at most; 256 of them are bytes.
        context: ``model_max_length`` to write down.
    """
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    counts = Counter(word for text, first in _texts(scenes) for word in _words(split, text, first=first))
    words = [word for word, _ in counts.most_common() if len(word) > 1 and word.strip("Ġ") not in NAMED]
    vocabulary = {token: number for number, token in enumerate((*letters, *words[: size - len(letters)]))}
    backend = Backend(models.BPE(vocabulary, [], ignore_merges=True))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = split
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    settings = {
        "add_prefix_space": False,
        "bos_token": "[BOS]",
        "eos_token": "<|im_end|>",
        "pad_token": "[PAD]",
        "unk_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "model_max_length": context,
        "padding_side": "right",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
    }
    return Tokenizer(backend, settings=settings)


def _texts(scenes: Iterable[Scene]) -> Iterator[tuple[str, bool]]:
    """What is said, and whether it begins with a word of ours rather than one that is read off the picture."""
    yield from ((text, True) for text in ("user", "assistant", *CAPTION_REQUESTS))
    for scene in scenes:
        yield scene.text, False
        for question in scene.questions:
            yield question.question, True
            yield question.answer, False


def _words(split: pre_tokenizers.Sequence, text: str, *, first: bool) -> Iterator[str]:
    """The words in lower case, and if so asked the first: what is printed begins with a capital."""
    for number, (piece, _) in enumerate(split.pre_tokenize_str(text)):
        if piece.strip("Ġ").islower() or (first and number == 0):
            yield piece
