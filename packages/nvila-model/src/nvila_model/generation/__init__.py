"""From the network's scores to answers, token by token."""

from typing import TYPE_CHECKING

from nvila_model.lazy import lazy_names

if TYPE_CHECKING:
    from nvila_model.generation.chat import Chat
    from nvila_model.generation.decoding import Answer, BudgetError, Stream, Timings, generate, steps
    from nvila_model.generation.detokenize import TextStream
    from nvila_model.generation.prompt import prefill
    from nvila_model.generation.sampling import Sampling, SamplingOptions

__all__ = [
    "Answer",
    "BudgetError",
    "Chat",
    "Sampling",
    "SamplingOptions",
    "Stream",
    "TextStream",
    "Timings",
    "generate",
    "prefill",
    "steps",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "chat": "Chat",
        "decoding": "Answer BudgetError Stream Timings generate steps",
        "detokenize": "TextStream",
        "prompt": "prefill",
        "sampling": "Sampling SamplingOptions",
    },
)
