"""NVILA: the network with its doors: load, answer, optimize, save."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack, overload

import torch
from torch import Tensor

from nvila_model.checkpoint.assembly import assemble
from nvila_model.checkpoint.hub import locate
from nvila_model.checkpoint.load_options import own_options
from nvila_model.checkpoint.loading import load
from nvila_model.checkpoint.quantized import quantized_layers
from nvila_model.checkpoint.saving import save
from nvila_model.config import NVILAConfig
from nvila_model.estimate import outline
from nvila_model.generation.chat import Chat
from nvila_model.generation.decoding import Answer, Stream, generate
from nvila_model.generation.sampling import Sampling, SamplingOptions, sampling_of
from nvila_model.inputs.messages import Conversation
from nvila_model.inputs.tokenizer import Tokenizer
from nvila_model.network.vlm import VLM
from nvila_model.parity import Parity

if TYPE_CHECKING:
    from nvila_kernels.cpu import OptimizedLayer

FETCH = ("revision", "offline", "cache_dir", "token")
"""Options that say where a checkpoint is."""


class NVILA(VLM):
    """The full vision-language model; see ``nvila_model.network.VLM`` for its parts.

    Attributes:
        optimized: whether quantized layers were given to the processor's kernels. Such a model only answers.
    """

    optimized: bool = False

    @classmethod
    def from_pretrained(cls, name: str | Path = "nano", *, optimize: bool = True, **options: Any) -> Self:
        """Load a checkpoint: ``"nano"``, a folder, or a hub repository.

        Args:
            optimize: on a CPU, give the layers of a quantized checkpoint to the kernels that are fastest there, as
                ``nvila ask`` does. False leaves the model as it is stored: it can be changed, trained and moved.
            options: of ``nvila_model.checkpoint.load``. ``torch_dtype``, ``device_map`` and ``local_files_only`` are
                understood as ``dtype``, ``device`` and ``offline``.

        Raises: CheckpointError, in one sentence that names the file and what was expected; TypeError for an option that
            is not known.
        """
        options = own_options(options)
        folder = locate(name, **{option: options[option] for option in FETCH if option in options})
        model = load(folder, model_type=cls, **{"stored_vocabulary": optimize, **options})
        if optimize and model.optimize() and options.get("adapter") is None:
            model.source = folder
        return model

    @classmethod
    def from_config(cls, config: NVILAConfig, tokenizer: Tokenizer, *, parity: Parity | None = None) -> Self:
        """A model with random weights on the default device, as ``config`` describes it."""
        return assemble(config, tokenizer, model_type=cls, parity=parity)

    @classmethod
    def outline(cls, config: NVILAConfig) -> Self:
        """A model on the meta device, without weights and tokenizer: it counts tokens and bytes, it cannot answer."""
        return outline(config, model_type=cls)

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Write a checkpoint in upstream's layout, whole or not at all; options as in ``checkpoint.save``."""
        save(self, folder, **options)

    def optimize(self, **options: Any) -> tuple[OptimizedLayer, ...]:
        """Give quantized layers to the kernels that are fastest on this processor, in place; it only answers then.

        A model without quantized layers stays as it is, and so does one on a GPU, where layers have their kernels.

        Args:
            options: of ``nvila_model.cpu.optimize``.

        Returns: the kernels of each layer.
        Raises: ValueError if the model is optimized already.
        """
        if self.optimized:
            raise ValueError("this model is optimized already: load it again with optimize=False to choose otherwise")
        if self.device.type != "cpu" or not quantized_layers(self):
            return ()
        from nvila_model.cpu.optimized_model import optimize  # a model of floats needs none of its kernels

        done = optimize(self, **options)
        self.optimized = True
        return done

    # Answers

    @overload
    def generate(
        self, messages: Conversation, sampling: Sampling | None = None, **options: Unpack[SamplingOptions]
    ) -> Answer: ...
    @overload
    def generate(
        self, messages: Sequence[Conversation], sampling: Sampling | None = None, **options: Unpack[SamplingOptions]
    ) -> list[Answer]: ...
    def generate(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling: Sampling | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Answer | list[Answer]:
        """Answer one conversation, or each of a list of them.

        Args:
            messages: chat messages of content parts, such as
                ``[{"role": "user", "content": [Image("receipt.png"), "What is the total?"]}]``.
            sampling: how answers are drawn; greedy by default.
            options: fields of ``Sampling`` by keyword, such as ``max_new_tokens=64``; they go before ``sampling``.

        Returns: an ``Answer``; a list of them for a list of conversations.
        Raises: MediaError for a picture or clip that cannot be read, BudgetError if prompt and answer are too long.
        """
        processor = self.needed_processor()
        drawn = sampling_of(sampling, options)
        answers = generate(self, processor(messages), drawn, eos_ids=processor.tokenizer.eos_ids)
        return answers[0] if messages and isinstance(messages[0], Mapping) else answers

    def stream(
        self, messages: Conversation, sampling: Sampling | None = None, **options: Unpack[SamplingOptions]
    ) -> Stream:
        """Answer one conversation piece by piece; the pieces join to the text of ``generate``.

        ``answer`` of what comes back has the whole text, its tokens and seconds, at any time.
        """
        processor = self.needed_processor()
        drawn = sampling_of(sampling, options)
        return Stream(self, processor(messages), drawn, eos_ids=processor.tokenizer.eos_ids)

    def chat(
        self, messages: Conversation = (), *, sampling: Sampling | None = None, **options: Unpack[SamplingOptions]
    ) -> Chat:
        """A conversation that remembers its turns: ``chat.ask(Image("a.png"), "What is this?")``, ``chat.ask("Why?")``.

        Args:
            messages: turns to begin with.
        """
        return Chat(self, sampling_of(sampling, options), messages)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As every module; an optimized model refuses before a part of it has moved."""
        if self.optimized:
            moved = fn(torch.empty(0))
            if (moved.dtype, moved.device.type) != (torch.float32, "cpu"):
                raise ValueError(
                    f"an optimized model computes in float32 on the CPU and cannot be moved to {moved.dtype} on "
                    f"{moved.device}: load it with optimize=False"
                )
        return super()._apply(fn, recurse)
