"""What goes wrong at the edge of the package; all are ``ValueError``."""


class TilingError(ValueError):
    """A setting, an image or a tensor that cannot be tiled; the message names value, limit and remedy."""


class ImageError(TilingError):
    """An image of a type, shape, mode or size that cannot be read as 8-bit RGB."""


class GridError(TilingError):
    """Features, maps, points or tile numbers that do not fit their grid or plan."""
