"""Building a network without weights: shapes alone, no memory, and nothing drawn.

On torch's meta device a parameter has a shape and no numbers, so drawing them does nothing, slowly: the first random
number of that device imports torch's compiler, which takes longer than to load a small model. Here the two methods
from which every random initialization is made return at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

RANDOM = (Tensor.normal_, Tensor.uniform_)


@contextmanager
def meta_device() -> Iterator[None]:
    """Put what is built inside on the meta device, without drawing weights for it."""
    with torch.device("meta"), NothingDrawn():
        yield


class NothingDrawn(TorchFunctionMode):
    """Leave tensors as they are where they would be filled with random numbers.

    The functions of ``torch.nn.init`` come here as a whole, and would not come back for the methods that they call.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in RANDOM or getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))
