"""Scenes by number: what a batch is drawn from.

Scene ``number`` of a stream depends on the stream's seed and the number alone, so any process can draw any part of
any batch, and a resumed run goes on exactly where it stopped.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from nvila_train.nano.drawing import Scene, Split, draw


@dataclass(frozen=True, kw_only=True)
class SceneStream:
    """An endless row of scenes.

    Args:
        seed: of the whole row.
        mix: how often each kind comes, as weights.
        split: which fonts and random numbers are used.
    """

    seed: int
    mix: Mapping[str, float]
    split: Split = "train"

    def random(self, number: int) -> Random:
        """A generator for choices about scene ``number``, apart from those that draw it."""
        return Random(f"{self.seed}/{number}")

    def kind(self, number: int) -> str:
        """The kind of scene ``number``."""
        return self._choice(number)[0]

    def scene(self, number: int) -> Scene:
        """Draw scene ``number``."""
        kind, seed = self._choice(number)
        return draw(kind, seed=seed, split=self.split)

    def _choice(self, number: int) -> tuple[str, int]:
        rng = Random(f"{self.seed}/{number}/kind")
        return rng.choices(list(self.mix), list(self.mix.values()))[0], rng.getrandbits(48)
