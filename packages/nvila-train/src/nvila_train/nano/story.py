"""Clips as stories: which shapes stand where in each frame, without drawing or encoding a clip.

The playground's clips keep only their pixels. Pretraining needs to know what each frame shows, so it draws stories
of its own from the same stages.
"""

from random import Random

import PIL.Image
import PIL.ImageDraw

from nvila_train.nano.drawing import Object, Scene
from nvila_train.nano.drawing.canvas import shade
from nvila_train.nano.drawing.clips import BEATS, STORIES, Actor, Story
from nvila_train.nano.drawing.outlines import paint
from nvila_train.nano.drawing.words import COLOURS

SIDE = 64


def random_story(rng: Random, *, frames: int = BEATS) -> tuple[Story, tuple[Scene, ...]]:
    """A random story, and what is seen of it at ``frames`` moments, evenly spread: a scene each, without questions."""
    dark = rng.random() < 0.25
    names = [name for name in COLOURS if name != ("black" if dark else "white")]
    story = STORIES[rng.choice(tuple(STORIES))](rng, names)
    count = frames * rng.randint(1, 3)
    base = rng.randint(20, 60) if dark else rng.randint(205, 250)
    ground = tuple(base + rng.randint(-8, 5) for _ in range(3))
    size = (SIDE, SIDE) if rng.random() < 0.6 else rng.choice(((64, 48), (48, 64), (64, 36)))
    rgb = {name: shade(rng, name) for name in names}
    shown = [story.stage((index * count // frames + 0.5) / count) for index in range(frames)]
    scenes = tuple(_frame(actors, size, (ground[0], ground[1], ground[2]), rgb) for actors in shown)
    return story, scenes


def _frame(
    actors: list[Actor], size: tuple[int, int], ground: tuple[int, int, int], rgb: dict[str, tuple[int, int, int]]
) -> Scene:
    image = PIL.Image.new("RGB", size, ground)
    pen = PIL.ImageDraw.Draw(image)
    objects: list[Object] = []
    for actor in actors:
        centre = (actor.x * size[0], actor.y * size[1])
        box = paint(pen, actor.kind, centre, actor.radius * min(size), rgb[actor.colour])
        objects.append(Object(name=actor.kind, colour=actor.colour, box=box))
    return Scene(kind="clips", image=image, questions=(), text="", objects=tuple(objects))
