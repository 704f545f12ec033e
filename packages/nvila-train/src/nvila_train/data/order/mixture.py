"""Which source a sample is from, and which place in that source's order it has.

Both follow from the sample's number alone, so that any process can make any sample: the numbers are cut into blocks of
a thousand, every block holds the same count of each source, and stands in an order of its own. A thousand samples of a
mixture therefore never stray from its weights, which are kept to a thousandth.
"""

from collections.abc import Sequence
from random import Random

from nvila_train.data.order.shuffle import key_of
from nvila_train.data.source import SourceError

BLOCK = 1000
"""Samples in which every source has its exact share."""


class Mixture:
    """Sources by weight.

    Args:
        weights: how often each source comes, above 0.
        seed: of the order within blocks.
    """

    def __init__(self, weights: Sequence[float], *, seed: int) -> None:
        self.seed = seed
        self.counts = shares(weights)
        self._drawn: tuple[int, list[tuple[int, int]]] = (-1, [])

    def place(self, number: int) -> tuple[int, int]:
        """The source of sample ``number``, and how many samples of that source come before it."""
        block, place = divmod(number, BLOCK)
        if self._drawn[0] != block:
            self._drawn = block, self._draw(block)
        return self._drawn[1][place]

    def _draw(self, block: int) -> list[tuple[int, int]]:
        order = [source for source, count in enumerate(self.counts) for _ in range(count)]
        Random(key_of(self.seed, "mixture", block)).shuffle(order)
        seen = [block * count for count in self.counts]
        places: list[tuple[int, int]] = []
        for source in order:
            places.append((source, seen[source]))
            seen[source] += 1
        return places


def shares(weights: Sequence[float]) -> list[int]:
    """``BLOCK`` divided in proportion to the weights, by largest remainder; at least one for each.

    Raises: SourceError if there are more sources than a block has samples.
    """
    if len(weights) > BLOCK:
        raise SourceError(f"{len(weights)} sources > {BLOCK}: put small ones together in one file")
    exact = [BLOCK * weight / sum(weights) for weight in weights]
    counts = [max(1, int(share)) for share in exact]
    while sum(counts) != BLOCK:
        step = 1 if sum(counts) < BLOCK else -1
        missed = [
            step * (share - count) if count > 1 or step > 0 else -BLOCK
            for share, count in zip(exact, counts, strict=True)
        ]
        counts[missed.index(max(missed))] += step
    return counts
