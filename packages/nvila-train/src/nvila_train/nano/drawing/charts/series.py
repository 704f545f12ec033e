"""The numbers behind a chart, and the questions that every chart answers."""

from dataclasses import dataclass
from itertools import pairwise
from random import Random

from nvila_train.nano.drawing.question_text import ask
from nvila_train.nano.drawing.scene import Question
from nvila_train.nano.drawing.words import CITIES, DAYS, ITEMS, MONTHS, NAMES

TOPICS = (DAYS, MONTHS, NAMES, ITEMS, CITIES, list("ABCDEFGH"))


@dataclass(frozen=True, kw_only=True)
class Series:
    """Labels with whole values and colours; ``step`` is the distance of the axis' ticks."""

    labels: tuple[str, ...]
    values: tuple[int, ...]
    colours: tuple[str, ...]
    step: int

    @property
    def lines(self) -> list[str]:
        """The chart written out."""
        rows = zip(self.labels, self.values, self.colours, strict=True)
        return [f"{label} {value} {colour}" for label, value, colour in rows]


def labels(rng: Random, count: int, longest: int) -> tuple[str, ...]:
    """Different labels of one topic, in the topic's own order where it has one, at most ``longest`` letters each."""
    topics = [[word for word in topic if len(word) <= longest] for topic in TOPICS]
    topic = rng.choice([words for words in topics if len(words) >= count])
    if topic[0] in (DAYS[0], MONTHS[0], "A") and len(topic) > count:
        start = rng.randint(0, len(topic) - count)
        return tuple(topic[start : start + count])
    return tuple(rng.sample(topic, count))


def values(rng: Random, count: int, *, ticks: int | None) -> tuple[tuple[int, ...], int]:
    """Different values and the axis' step; with ``ticks`` every value lies on one of them."""
    if ticks:
        step = rng.choice((1, 2, 5, 10, 10, 20))
        return tuple(step * level for level in rng.sample(range(1, ticks + 1), count)), step
    top = rng.choice((9, 20, 50, 99, 99))
    while True:
        drawn = tuple(rng.randint(1, top) for _ in range(count))
        ordered = sorted(drawn)
        if min((b - a for a, b in pairwise(ordered)), default=top) >= max(1, 0.06 * top):
            return drawn, 0


def lookups(rng: Random, series: Series, thing: str) -> list[Question]:
    """Questions about the values: of a label, the extremes, comparisons."""
    names, numbers = series.labels, series.values
    pairs = list(zip(names, numbers, strict=True))
    rng.shuffle(pairs)
    high, low = max(numbers), min(numbers)
    found = [
        ask(
            rng,
            value,
            "What is the value of {label}?",
            "How much is {label}?",
            "Which value does {label} have?",
            label=label,
        )
        for label, value in pairs[:2]
    ]
    found.append(
        ask(
            rng,
            names[numbers.index(high)],
            "Which {thing} is the highest?",
            "Which label has the highest value?",
            "Where is the maximum?",
            thing=thing,
        )
        if rng.random() < 0.5
        else ask(
            rng,
            names[numbers.index(low)],
            "Which {thing} is the lowest?",
            "Which label has the lowest value?",
            "Where is the minimum?",
            thing=thing,
        )
    )
    found.append(
        ask(rng, high, "What is the highest value?", "How much is the maximum?")
        if rng.random() < 0.5
        else ask(rng, low, "What is the lowest value?", "How much is the minimum?")
    )
    label, value = pairs[-1]
    found.append(ask(rng, label, "Which label has the value {value}?", "What has the value {value}?", value=value))
    if rng.random() < 0.4:
        (label, value), (other, rival) = pairs[0], pairs[-1]
        found.append(
            ask(rng, "yes" if value > rival else "no", "Is {label} higher than {other}?", label=label, other=other)
        )
    return found
