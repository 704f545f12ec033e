"""Drop image tokens inside the language model, after layers that have read them."""

from nvila_compress.decoder.fastv import FastV
from nvila_compress.decoder.pyramid_drop import PyramidDrop
from nvila_compress.decoder.schedule import DropSchedule
from nvila_compress.decoder.transformers import Dropping, drop_tokens

__all__ = ["DropSchedule", "Dropping", "FastV", "PyramidDrop", "drop_tokens"]
