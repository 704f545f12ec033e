"""Fine-tuning: which parts learn in full, which through adapters, which not at all, and adapters on disk."""

from nvila_train.tuning.adapter import save_adapter
from nvila_train.tuning.nf4 import MissingExtraError
from nvila_train.tuning.prepare import (
    LanguageTuning,
    ProjectorTuning,
    TuningError,
    VisionTuning,
    is_tuned,
    learnable,
    merge,
    tune,
)

__all__ = [
    "LanguageTuning",
    "MissingExtraError",
    "ProjectorTuning",
    "TuningError",
    "VisionTuning",
    "is_tuned",
    "learnable",
    "merge",
    "save_adapter",
    "tune",
]
