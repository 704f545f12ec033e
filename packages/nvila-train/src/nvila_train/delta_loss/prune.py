"""Which rows stay: by score, at random, or evenly from clusters, always ``ceil(keep * n)`` of each source."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import get_args

import numpy as np

from nvila_train.delta_loss.choices import By, DeltaLossError, Method, Normalize
from nvila_train.delta_loss.score_table import Scores


@dataclass(frozen=True, kw_only=True, eq=False)
class Pruned:
    """What stays of a table of scores.

    Attributes:
        kept: bool ``[n]``, in the table's order.
        cuts: for each group the lowest score that stays; empty unless the method goes by score.
    """

    kept: np.ndarray
    cuts: Mapping[str, float]


def prune(
    scores: Scores,
    *,
    keep: float,
    by: By = "source",
    method: Method = "deltaloss",
    normalize: Normalize = "none",
    seed: int = 0,
    clusters: Sequence[int] | np.ndarray | None = None,
) -> Pruned:
    """Choose ``ceil(keep * n)`` rows of each source.

    ``deltaloss`` keeps the highest scores; of equal ones the row that comes first. ``random`` draws. ``cluster`` draws
    as many from every cluster as it can give; what small clusters lack, the larger ones give in equal shares.

    Args:
        keep: share of the rows, above 0 and at most 1.
        by: each source for itself, or all rows together.
        normalize: ``tokens`` scores by means over the answer's tokens.
        seed: of the draws.
        clusters: the cluster of each row, for ``cluster``.

    Raises: DeltaLossError for settings that cannot be, or a score that is not a number.
    Source: NVILA, section 2.2 and Table 3.
    """
    for value, kind in ((by, By), (method, Method), (normalize, Normalize)):
        if value not in get_args(kind):
            raise DeltaLossError(f"{value!r} is not one of {', '.join(get_args(kind))}")
    if not 0 < keep <= 1:
        raise DeltaLossError(f"keep {keep} is not a share: use a number above 0 and at most 1")
    if method == "cluster" and (clusters is None or len(clusters) != len(scores)):
        raise DeltaLossError(f"method cluster needs the cluster of each of {len(scores)} rows: pass clusters")
    delta = scores.delta(normalize)
    if not np.isfinite(delta).all():
        row = int(scores.row[~np.isfinite(delta)][0])
        raise DeltaLossError(f"the score of row {row} is not finite: score it again with models that are whole")
    kept = np.zeros(len(scores), dtype=bool)
    cuts: dict[str, float] = {}
    for name, places in groups(scores, by).items():
        count = quota(keep, len(places))
        rng = np.random.default_rng((seed, *name.encode()))
        match method:
            case "deltaloss":
                chosen = places[np.argsort(-delta[places], kind="stable")[:count]]
                cuts[name] = float(delta[chosen].min())
            case "random":
                chosen = rng.permutation(places)[:count]
            case "cluster":
                chosen = evenly(places, np.asarray(clusters)[places], count, rng)
        kept[chosen] = True
    return Pruned(kept=kept, cuts=cuts)


def groups(scores: Scores, by: By) -> dict[str, np.ndarray]:
    """The places of each source's rows in the table, or of all under the name ``all``."""
    if by == "all":
        return {"all": np.arange(len(scores))}
    sources = np.array(scores.source, dtype=object)
    return {name: np.flatnonzero(sources == name) for name in dict.fromkeys(scores.source)}


def quota(keep: float, count: int) -> int:
    """``ceil(keep * count)`` of the decimal number that was written: 10 % of 30 are 3, not 4 as in floating point."""
    exact = Fraction(repr(float(keep))) * count
    return -(-exact.numerator // exact.denominator)


def evenly(places: np.ndarray, clusters: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw ``count`` places, from every cluster as many as from any other that has them."""
    members = [rng.permutation(places[clusters == cluster]) for cluster in np.unique(clusters)]
    chosen: list[np.ndarray] = []
    for left, cluster in zip(range(len(members), 0, -1), sorted(members, key=len), strict=True):
        share = min(len(cluster), (count - sum(map(len, chosen))) // left)
        chosen.append(cluster[:share])
    return np.concatenate(chosen)
