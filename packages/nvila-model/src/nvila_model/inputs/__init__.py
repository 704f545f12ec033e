"""What goes into the model: messages of text, images and videos, and how they become tiles and ids."""

from typing import TYPE_CHECKING

from nvila_model.lazy import lazy_names

if TYPE_CHECKING:
    from nvila_model.inputs.errors import MediaError, MediaWarning
    from nvila_model.inputs.json_file import JSONFileError, parse_json
    from nvila_model.inputs.labels import IGNORE, LabelledText, label_answers, match_greedily
    from nvila_model.inputs.limits import LimitError, Limits, current_limits, use_limits
    from nvila_model.inputs.llava import read_llava
    from nvila_model.inputs.media import Image, SampledFrame, Video, VideoFrames
    from nvila_model.inputs.messages import Conversation, Message, MessageError, Part, Turn, read_conversation
    from nvila_model.inputs.model_inputs import MediaSlot, ModelInputs, TiledVideo
    from nvila_model.inputs.processor import Processor, VideoSettings
    from nvila_model.inputs.sources import is_address
    from nvila_model.inputs.template import ChatTemplate, TemplateError
    from nvila_model.inputs.tokenizer import IMAGE_TOKEN, MEDIA_TOKENS, VIDEO_TOKEN, Tokenizer
    from nvila_model.inputs.tokenizer_files import QWEN2_SPLIT, TokenizerError
    from nvila_model.inputs.web.fetch import fetch, open_address

__all__ = [
    "IGNORE",
    "IMAGE_TOKEN",
    "MEDIA_TOKENS",
    "QWEN2_SPLIT",
    "VIDEO_TOKEN",
    "ChatTemplate",
    "Conversation",
    "Image",
    "JSONFileError",
    "LabelledText",
    "LimitError",
    "Limits",
    "MediaError",
    "MediaSlot",
    "MediaWarning",
    "Message",
    "MessageError",
    "ModelInputs",
    "Part",
    "Processor",
    "SampledFrame",
    "TemplateError",
    "TiledVideo",
    "Tokenizer",
    "TokenizerError",
    "Turn",
    "Video",
    "VideoFrames",
    "VideoSettings",
    "current_limits",
    "fetch",
    "is_address",
    "label_answers",
    "match_greedily",
    "open_address",
    "parse_json",
    "read_conversation",
    "read_llava",
    "use_limits",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "errors": "MediaError MediaWarning",
        "json_file": "JSONFileError parse_json",
        "labels": "IGNORE LabelledText label_answers match_greedily",
        "limits": "LimitError Limits current_limits use_limits",
        "llava": "read_llava",
        "media": "Image SampledFrame Video VideoFrames",
        "messages": "Conversation Message MessageError Part Turn read_conversation",
        "model_inputs": "MediaSlot ModelInputs TiledVideo",
        "processor": "Processor VideoSettings",
        "sources": "is_address",
        "template": "ChatTemplate TemplateError",
        "tokenizer": "IMAGE_TOKEN MEDIA_TOKENS VIDEO_TOKEN Tokenizer",
        "tokenizer_files": "QWEN2_SPLIT TokenizerError",
        "web.fetch": "fetch open_address",
    },
)
