"""What is said of data and scores that cannot be used."""


class DeltaLossError(ValueError):
    """Data, scores or settings that cannot be used; the message is one sentence for the user."""
