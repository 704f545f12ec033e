"""PyramidDrop: a little less of the image after each part of the model.

Shallow layers need all image tokens, deep ones hardly any. One cut must be too early for some or too late for others;
PyramidDrop divides the layers into stages and keeps a share of what is left after each.
"""

from dataclasses import dataclass

from nvila_compress.decoder.schedule import DropSchedule


@dataclass(frozen=True)
class PyramidDrop(DropSchedule):
    """After each of ``stages`` equal parts of the layers but the last, the share ``keep`` of the image tokens goes on.

    Stage ``s`` sees ``keep^s`` of them: with 4 stages and a half, 1, 1/2, 1/4, 1/8. The rank is the mean over heads of
    the attention of the last token in the last layer of a stage.

    Args:
        stages: parts, 4 in the paper.
        keep: a share, 0.5 in the paper.

    Raises: ValueError for fewer than 2 stages or a share outside ``(0, 1)``.
    Source: Xing et al., PyramidDrop (arXiv 2410.17247), section 3.
    """

    stages: int = 4
    keep: float = 0.5

    def __post_init__(self) -> None:
        if self.stages < 2 or not 0 < self.keep < 1:
            raise ValueError(
                f"stages {self.stages}, keep {self.keep}: pass at least 2 stages and a share between 0 and 1"
            )

    def shares(self, layers: int) -> dict[int, int | float]:
        if layers < self.stages:
            raise ValueError(f"{layers} layers make no {self.stages} stages: pass fewer stages")
        return {layers * stage // self.stages: self.keep**stage for stage in range(1, self.stages)}
