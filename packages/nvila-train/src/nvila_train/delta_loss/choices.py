"""What may be chosen in scoring and pruning, and the error of all that cannot be used."""

from typing import Literal

Method = Literal["deltaloss", "random", "cluster"]
By = Literal["source", "all"]
Normalize = Literal["none", "tokens"]


class DeltaLossError(ValueError):
    """Data, scores or settings that cannot be used; the message is one sentence for the user."""
