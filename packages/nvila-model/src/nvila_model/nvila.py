"""NVILA: the network with its doors: load, answer, save."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, overload

from nvila_model.checkpoint.assembly import assemble
from nvila_model.checkpoint.loading import load
from nvila_model.checkpoint.saving import save
from nvila_model.config import NVILAConfig
from nvila_model.estimate import outline
from nvila_model.generation.decoding import Answer, Stream, generate
from nvila_model.generation.sampling import Sampling
from nvila_model.inputs.messages import Conversation
from nvila_model.inputs.tokenizer import Tokenizer
from nvila_model.network.vlm import VLM
from nvila_model.parity import Parity


class NVILA(VLM):
    """The full vision-language model; see ``nvila_model.network.VLM`` for its parts."""

    @classmethod
    def from_pretrained(cls, name: str | Path = "nano", **options: Any) -> Self:
        """Load a checkpoint: ``"nano"``, a folder, or a hub repository; options as in ``checkpoint.load``."""
        return load(name, model_type=cls, **options)

    @classmethod
    def from_config(cls, config: NVILAConfig, tokenizer: Tokenizer, *, parity: Parity | None = None) -> Self:
        """A model with random weights on the default device, as ``config`` describes it."""
        return assemble(config, tokenizer, model_type=cls, parity=parity)

    @classmethod
    def outline(cls, config: NVILAConfig) -> Self:
        """A model on the meta device, without weights and tokenizer: it counts tokens and bytes, it cannot answer."""
        return outline(config, model_type=cls)

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Write a checkpoint in upstream's layout; options as in ``checkpoint.save``."""
        save(self, folder, **options)

    @overload
    def generate(self, messages: Conversation, sampling: Sampling | None = None) -> Answer: ...
    @overload
    def generate(self, messages: Sequence[Conversation], sampling: Sampling | None = None) -> list[Answer]: ...
    def generate(
        self, messages: Conversation | Sequence[Conversation], sampling: Sampling | None = None
    ) -> Answer | list[Answer]:
        """Answer one conversation, or each of a list of them.

        Args:
            messages: chat messages of content parts, such as
                ``[{"role": "user", "content": [Image("receipt.png"), "What is the total?"]}]``.
            sampling: how answers are drawn; greedy by default.

        Returns: an ``Answer``; a list of them for a list of conversations.
        Raises: MediaError for a picture or clip that cannot be read, BudgetError if prompt and answer are too long.
        """
        processor = self.needed_processor()
        inputs = processor(messages)
        answers = generate(self, inputs, sampling or Sampling(), eos_ids=processor.tokenizer.eos_ids)
        return answers[0] if messages and isinstance(messages[0], Mapping) else answers

    def stream(self, messages: Conversation, sampling: Sampling | None = None) -> Stream:
        """Answer one conversation piece by piece; the pieces join to the text of ``generate``.

        ``answer`` of what comes back has the whole text, its tokens and seconds, at any time.
        """
        processor = self.needed_processor()
        inputs = processor(messages)
        return Stream(self, inputs, sampling or Sampling(), eos_ids=processor.tokenizer.eos_ids)
