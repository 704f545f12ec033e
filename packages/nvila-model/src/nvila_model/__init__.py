"""NVILA assembled from swappable parts: load, ask, stream."""

__all__: list[str] = []
