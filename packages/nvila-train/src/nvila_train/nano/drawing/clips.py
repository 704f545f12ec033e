"""Short clips: which way things move, in which order they come, how often they flash, how many remain.

A clip lasts eight beats of one to three frames, and nothing happens faster than a beat: eight frames taken evenly show
every event. All shapes are large enough to be told apart when a frame is seen 64 pixels wide.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import numpy as np
import PIL.Image
import PIL.ImageDraw

from nvila_train.nano.drawing.canvas import Colour, shade
from nvila_train.nano.drawing.fonts import Split
from nvila_train.nano.drawing.outlines import paint
from nvila_train.nano.drawing.question_text import ask, keep
from nvila_train.nano.drawing.scene import Clip, Question, Scene
from nvila_train.nano.drawing.words import COLOURS, SHAPES

BEATS = 8
WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
ORDINALS = ("first", "second", "third", "fourth")


@dataclass(frozen=True, kw_only=True)
class Actor:
    """A shape in one frame; position and radius are fractions of the picture."""

    kind: str
    colour: str
    x: float
    y: float
    radius: float

    @property
    def name(self) -> str:
        return f"{self.colour} {self.kind}"


Stage = Callable[[float], list[Actor]]
"""Who is to be seen at a time from 0 (first frame) to 1 (last frame)."""


@dataclass(frozen=True, kw_only=True)
class Story:
    """What happens in a clip."""

    stage: Stage
    text: str
    questions: list[Question]


def draw_clip(rng: Random, split: Split, variety: str | None = None) -> Scene:
    """A clip of 8 to 24 frames, each side 64 to 128 pixels; ``variety`` asks for one kind of story."""
    del split  # clips hold no text: the splits differ by their random numbers alone
    dark = rng.random() < 0.25
    names = [name for name in COLOURS if name != ("black" if dark else "white")]
    story = STORIES[variety or rng.choice(tuple(STORIES))](rng, names)
    base = rng.randint(20, 60) if dark else rng.randint(205, 250)
    ground = (base + rng.randint(-8, 5), base + rng.randint(-8, 5), base + rng.randint(-8, 5))
    width = height = 2 * rng.randint(32, 64)
    if rng.random() < 0.4:
        width, height = rng.choice(((128, 96), (96, 128), (96, 72), (112, 84), (128, 72)))
    rgb = {name: shade(rng, name) for name in names}
    count = BEATS * rng.randint(1, 3)
    frames = np.stack(
        [_frame(story.stage((index + 0.5) / count), (width, height), ground, rgb) for index in range(count)]
    )
    if rng.random() < 0.5:
        grain = np.random.default_rng(rng.getrandbits(32)).integers(-5, 6, frames.shape[1:], dtype=np.int16)
        frames = np.clip(frames + grain, 0, 255).astype(np.uint8)
    return Scene(
        kind="clips",
        clip=Clip(frames=frames, fps=rng.choice((4, 5, 6, 8, 10, 12, 15))),
        questions=keep(rng, story.questions, 4),
        text=story.text,
    )


def _frame(actors: list[Actor], size: tuple[int, int], ground: Colour, rgb: dict[str, Colour]) -> np.ndarray:
    image = PIL.Image.new("RGB", size, ground)
    pen = PIL.ImageDraw.Draw(image)
    for actor in actors:
        paint(pen, actor.kind, (actor.x * size[0], actor.y * size[1]), actor.radius * min(size), rgb[actor.colour])
    return np.asarray(image)


def _cast(rng: Random, names: list[str], count: int, radius: float) -> list[Actor]:
    """Actors of different colours and kinds, all at the centre."""
    colours, kinds = rng.sample(names, count), rng.sample(SHAPES, count)
    return [
        Actor(kind=kind, colour=colour, x=0.5, y=0.5, radius=radius * rng.uniform(0.9, 1.1))
        for kind, colour in zip(kinds, colours, strict=True)
    ]


def _placed(actor: Actor, x: float, y: float, radius: float | None = None) -> Actor:
    return Actor(kind=actor.kind, colour=actor.colour, x=x, y=y, radius=radius or actor.radius)


def _beat(time: float) -> int:
    return min(int(time * BEATS), BEATS - 1)


def motion(rng: Random, names: list[str]) -> Story:
    """One or two shapes, each moving one of four ways or keeping still."""
    cast = _cast(rng, names, rng.choice((1, 2)), 0.17)
    level = rng.random() < 0.5
    ways = [rng.choice(("left", "right") if level else ("up", "down")) for _ in cast]
    still = rng.randrange(2) if len(cast) == 2 and rng.random() < 0.5 else None
    lanes = [0.5 + rng.uniform(-0.25, 0.25)] if len(cast) == 1 else rng.sample((0.26, 0.74), 2)
    reach = rng.uniform(0.2, 0.3)
    rests = [rng.uniform(0.3, 0.7) for _ in cast]

    def stage(time: float) -> list[Actor]:
        shown: list[Actor] = []
        for index, actor in enumerate(cast):
            step = sum(WAYS[ways[index]])
            along = rests[index] if index == still else 0.5 + step * reach * (2 * time - 1)
            shown.append(_placed(actor, along, lanes[index]) if level else _placed(actor, lanes[index], along))
        return shown

    questions: list[Question] = []
    events: list[str] = []
    for index, actor in enumerate(cast):
        if index == still:
            events.append(f"{actor.name} stays")
            continue
        events.append(f"{actor.name} moves {ways[index]}")
        questions.append(
            ask(rng, ways[index], "Which way does the {name} move?", "Where does the {name} go?", name=actor.name)
        )
        if len(cast) == 1 or still is not None:
            questions += [
                ask(rng, ways[index], "Which way does the shape move?", "In which direction is the motion?"),
                ask(rng, actor.colour, "What colour is the moving shape?", "Which colour moves?"),
                ask(rng, actor.kind, "Which shape moves?", "What is moving?"),
            ]
    return Story(stage=stage, text=", ".join(events), questions=questions)


def order(rng: Random, names: list[str]) -> Story:
    """Two to four shapes, one after another."""
    count = rng.randint(2, 4)
    cast = [_placed(actor, rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7)) for actor in _cast(rng, names, count, 0.24)]
    ends = {2: (4, 8), 3: rng.choice(((3, 6, 8), (3, 5, 8), (2, 5, 8))), 4: (2, 4, 6, 8)}[count]

    def stage(time: float) -> list[Actor]:
        return [cast[next(index for index, end in enumerate(ends) if _beat(time) < end)]]

    pick = rng.randrange(count)
    which = rng.choice((ORDINALS[pick], "last")) if pick == count - 1 else ORDINALS[pick]
    other = rng.randrange(count)
    after = rng.randrange(1, count)
    questions = [
        ask(rng, cast[pick].colour, "Which colour comes {w}?", "What colour is the {w} shape?", w=which),
        ask(rng, cast[other].kind, "Which shape comes {w}?", "What is the {w} shape?", w=ORDINALS[other]),
        ask(rng, count, "How many shapes come one after another?", "How many different shapes appear?"),
        ask(
            rng, cast[after].name, "What comes after the {name}?", "What follows the {name}?", name=cast[after - 1].name
        ),
    ]
    text = ", then ".join(actor.name for actor in cast)
    return Story(stage=stage, text=text, questions=questions)


def flashes(rng: Random, names: list[str]) -> Story:
    """A shape that lights up one to four times, a beat each."""
    (actor,) = _cast(rng, names, 1, 0.28)
    actor = _placed(actor, rng.uniform(0.35, 0.65), rng.uniform(0.35, 0.65))
    times = rng.randint(1, 4)
    beats = [2 * slot + 1 for slot in rng.sample(range(4), times)]
    if times < 4:
        beats = [beat - rng.randint(0, 1) if beat - 2 not in beats else beat for beat in beats]

    def stage(time: float) -> list[Actor]:
        return [actor] if _beat(time) in beats else []

    questions = [
        ask(
            rng,
            times,
            "How many times does the {kind} flash?",
            "How often does the {kind} light up?",
            "Count the flashes of the {kind}.",
            kind=actor.kind,
        ),
        ask(rng, actor.colour, "What colour is the flashing shape?", "Which colour flashes?"),
        ask(rng, actor.kind, "Which shape flashes?", "What is flashing?"),
    ]
    many = f"{times} time" + ("s" if times > 1 else "")
    return Story(stage=stage, text=f"{actor.name} flashes {many}", questions=questions)


def arrivals(rng: Random, names: list[str]) -> Story:
    """Shapes that come and stay, or leave one by one."""
    total, left_over = rng.randint(2, 5), rng.randint(1, 3)
    few = min(left_over, total - 1)
    spots = rng.sample([(x, y) for x in (0.2, 0.5, 0.8) for y in (0.2, 0.5, 0.8)], total)
    cast = [_placed(actor, *spot) for actor, spot in zip(_cast(rng, names, total, 0.13), spots, strict=True)]
    beats = sorted(rng.sample(range(2, BEATS - 1), total - few))
    coming = rng.random() < 0.5

    def stage(time: float) -> list[Actor]:
        passed = sum(_beat(time) >= beat for beat in beats)
        return cast[: few + passed] if coming else cast[passed:]

    start, end = (few, total) if coming else (total, few)
    verb = "appears" if coming else "disappears"
    changed = cast[few:] if coming else cast[: total - few]
    questions = [
        ask(rng, end, "How many shapes are there at the end?", "How many shapes remain in the last frame?"),
        ask(rng, start, "How many shapes are there at the start?", "How many shapes are in the first frame?"),
        ask(rng, total - few, "How many shapes {verb}?", verb=verb.rstrip("s")),
        ask(rng, changed[0].colour, "What colour {verb} first?", "Which colour {verb} first?", verb=verb),
        ask(rng, changed[-1].kind, "Which shape {verb} last?", verb=verb),
    ]
    steps = [f"{start} shapes at the start", *(f"{actor.name} {verb}" for actor in changed), f"{end} at the end"]
    return Story(stage=stage, text=", ".join(steps), questions=questions)


def changes(rng: Random, names: list[str]) -> Story:
    """A shape that turns into another colour or kind, or grows or shrinks."""
    before, after = _cast(rng, names, 2, 0.24)
    spot = rng.uniform(0.35, 0.65), rng.uniform(0.35, 0.65)
    trait = rng.choice(("colour", "kind", "size"))
    turn = rng.randint(3, 5)
    small, large = rng.uniform(0.12, 0.15), rng.uniform(0.28, 0.33)
    first, last = (small, large) if rng.random() < 0.5 else (large, small)
    changed = Actor(
        kind=after.kind if trait == "kind" else before.kind,
        colour=after.colour if trait == "colour" else before.colour,
        x=spot[0],
        y=spot[1],
        radius=before.radius,
    )

    def stage(time: float) -> list[Actor]:
        if trait == "size":
            return [_placed(before, *spot, radius=first + (last - first) * time)]
        return [changed if _beat(time) >= turn else _placed(before, *spot)]

    if trait == "size":
        verb = "grow" if first < last else "shrink"
        questions = [
            ask(rng, verb, "Does the {kind} grow or shrink?", "Does the shape grow or shrink?", kind=before.kind),
            ask(rng, before.colour, "What colour is the {kind}?", kind=before.kind),
            ask(rng, before.kind, "Which shape changes its size?", "What is the shape?"),
        ]
        return Story(stage=stage, text=f"{before.name} {verb}s", questions=questions)
    questions = [
        ask(rng, changed.name, "What does the {name} turn into?", "What does the {name} become?", name=before.name),
        ask(rng, changed.name, "What is there at the end?", "What do you see in the last frame?"),
        ask(rng, before.name, "What is there at the start?", "What do you see in the first frame?"),
    ]
    return Story(stage=stage, text=f"{before.name} turns into {changed.name}", questions=questions)


STORIES: dict[str, Callable[[Random, list[str]], Story]] = {
    "motion": motion,
    "order": order,
    "flashes": flashes,
    "arrivals": arrivals,
    "changes": changes,
}
