"""Dynamic-S2 and dynamic tiling: any image to multi-scale tiles and back."""

__all__: list[str] = []
