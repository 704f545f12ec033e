"""Train, fine-tune and prune data for NVILA."""

__all__: list[str] = []
