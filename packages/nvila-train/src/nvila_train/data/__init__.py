"""Training data: conversations from files, tables and shards, mixed, ordered, checked and packed.

    source -> rows -> record -> sample -> Reader (ranks, workers, skips, resume) -> rows of a token budget

Nothing here is registered: a path is enough.
"""

from nvila_train.data.budget import bins, join
from nvila_train.data.conversations import ConversationDataset, Sample, SampleError
from nvila_train.data.reader import DataError, Reader, SkipWarning
from nvila_train.data.source import DataSource, SourceError

__all__ = [
    "ConversationDataset",
    "DataError",
    "DataSource",
    "Reader",
    "Sample",
    "SampleError",
    "SkipWarning",
    "SourceError",
    "bins",
    "join",
]
