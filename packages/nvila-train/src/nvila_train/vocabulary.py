"""A small byte-level BPE in Qwen2's form, trained on what the playground says.

The files are those of a published checkpoint's ``llm/`` folder: Qwen2's split (every digit alone), its special
tokens, and the media tokens in upstream's order. The chat template has no system turn: at this size every
position counts.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from nvila_model.tokenizer import MEDIA_TOKENS, Tokenizer
from nvila_model.tokenizer_files import QWEN2_SPLIT
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from nvila_train.conversation import CAPTION_REQUESTS
from nvila_train.playground import Scene

SPECIAL_TOKENS: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "[BOS]", "[PAD]", *MEDIA_TOKENS)

CHAT_TEMPLATE: Final = (
    "{% for message in messages if message['content'] is not none %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def train_tokenizer(scenes: Iterable[Scene], *, size: int, context: int) -> Tokenizer:
    """Learn merges from the questions, answers and texts of scenes.

    Args:
        size: tokens without the special ones; 256 of them are bytes.
        context: ``model_max_length`` to write down.
    """
    backend = Backend(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(_texts(scenes), trainer)
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


def _texts(scenes: Iterable[Scene]) -> Iterator[str]:
    for scene in scenes:
        yield "user\nassistant\n"
        yield scene.text
        yield from CAPTION_REQUESTS
        for question in scene.questions:
            yield question.question
            yield question.answer
