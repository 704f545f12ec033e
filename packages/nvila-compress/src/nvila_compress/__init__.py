"""Visual token compressors for any vision-language model."""

__all__: list[str] = []
