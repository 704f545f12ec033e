"""The turn that a video stores beside its pixels, undone as FFmpeg undoes it.

A display matrix maps stored to shown pixels; phones write one of eight: four turns, and each mirrored. FFmpeg
reads an angle out of it and mirrors by the signs of its diagonal. Other angles turn the picture within its
own frame.
"""

import math
import struct

from PIL import Image as PILImage

_TURN = PILImage.Transpose


def upright(image: PILImage.Image, matrix: bytes | None) -> PILImage.Image:
    """A stored picture as it is to be shown.

    Args:
        image: the picture as decoded.
        matrix: nine int32 of the machine's order, 16.16 fixed point, row by row; None turns nothing.
    """
    if matrix is None or len(matrix) < 36:
        return image
    values = struct.unpack("=9i", matrix[:36])
    angle = _angle(values)
    if angle is None:
        return image
    if abs(angle - 90) < 1:
        return image.transpose(_TURN.TRANSPOSE if values[3] > 0 else _TURN.ROTATE_270)
    if abs(angle - 270) < 1:
        return image.transpose(_TURN.TRANSVERSE if values[3] < 0 else _TURN.ROTATE_90)
    if abs(angle - 180) < 1:
        image = image.transpose(_TURN.FLIP_LEFT_RIGHT) if values[0] < 0 else image
        return image.transpose(_TURN.FLIP_TOP_BOTTOM) if values[4] < 0 else image
    if angle > 1:
        return image.rotate(-angle, resample=PILImage.Resampling.BILINEAR)
    return image.transpose(_TURN.FLIP_TOP_BOTTOM) if values[4] < 0 else image


def _angle(values: tuple[int, ...]) -> float | None:
    """Degrees clockwise, 0 to 360, as ffmpeg's ``get_rotation``; None for a matrix that is none."""
    across, down = math.hypot(values[0], values[3]), math.hypot(values[1], values[4])
    if not across or not down:
        return None
    angle = round(math.degrees(math.atan2(values[1] / down, values[0] / across)))
    return angle - 360 * math.floor(angle / 360 + 0.9 / 360)
