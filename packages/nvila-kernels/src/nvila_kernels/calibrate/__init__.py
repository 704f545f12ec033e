"""Calibration: watch a model at work, and make it easier to quantize.

``walk`` goes through the blocks of a model; ``observe`` collects what their layers see; ``fold_block_`` folds
scales (``awq_scales``, ``smooth_scales``) along declared ``Fold`` s; ``clip_int4`` narrows ranges.
"""

from nvila_kernels.calibrate.awq import AwqScales, awq_scales
from nvila_kernels.calibrate.block import fold_block_
from nvila_kernels.calibrate.clip import clip_int4
from nvila_kernels.calibrate.fold import Fold, fold_
from nvila_kernels.calibrate.observe import Observed, Reservoir, observe
from nvila_kernels.calibrate.smooth import smooth_scales
from nvila_kernels.calibrate.walk import walk

__all__ = [
    "AwqScales",
    "Fold",
    "Observed",
    "Reservoir",
    "awq_scales",
    "clip_int4",
    "fold_",
    "fold_block_",
    "observe",
    "smooth_scales",
    "walk",
]
