"""One sample as every objective needs it: pictures, what is asked, and what the patches show."""

from dataclasses import dataclass

import PIL.Image
from nvila_tiling import DynamicS2, Grid, TiledImage, TilePlan

from nvila_train.nano.drawing import Scene
from nvila_train.nano.drawing.clips import Story
from nvila_train.nano.patch_labels import PatchLabels, patch_labels
from nvila_train.nano.scene_stream import SceneStream
from nvila_train.nano.story import random_story


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """The pictures of one scene: one image, or the frames of a clip.

    Attributes:
        scenes: what they show, one scene a picture.
        tiler: how each is tiled; a frame is a single tile.
        clip: whether they are frames.
    """

    scenes: tuple[Scene, ...]
    tiler: DynamicS2
    clip: bool

    def tiled(self) -> list[TiledImage]:
        """Every picture cut into tiles."""
        tiler = self.tiler.single() if self.clip else self.tiler
        return [tiler(image_of(scene)) for scene in self.scenes]

    @property
    def plans(self) -> list[TilePlan]:
        """How every picture is cut."""
        tiler = self.tiler.single() if self.clip else self.tiler
        return [tiler.plan(*image_of(scene).size) for scene in self.scenes]

    def labels(self, *, patch: int, all_scales: bool) -> PatchLabels:
        """Labels of every tile, or of those of the largest scale only."""
        found: list[PatchLabels] = []
        for scene, plan in zip(self.scenes, self.plans, strict=True):
            labels = patch_labels(scene, plan, patch=patch)
            found.append(labels if all_scales else labels.last(plan.grids[-1].count))
        return PatchLabels.join(found)

    @property
    def grid(self) -> Grid:
        """The grid of the largest scale, the same for all pictures."""
        return self.plans[0].grids[-1]


def image_of(scene: Scene) -> PIL.Image.Image:
    """The image of a scene that is not a clip."""
    assert scene.image is not None
    return scene.image


def pictures(stream: SceneStream, number: int, tiler: DynamicS2) -> tuple[Pictures, Scene | Story]:
    """The pictures of sample ``number``, and the scene or story that holds its questions."""
    if stream.kind(number) == "clips":
        story, frames = random_story(stream.random(number))
        return Pictures(scenes=frames, tiler=tiler, clip=True), story
    scene = stream.scene(number)
    return Pictures(scenes=(scene,), tiler=tiler, clip=False), scene
