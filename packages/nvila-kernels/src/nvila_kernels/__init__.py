"""Quantized linear algebra: W4A16, W8A8 and FP8 on GPU and CPU."""

__all__: list[str] = []
