"""Messages as callers write them, read into turns of text, images and videos."""

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from PIL import Image as PILImage

from nvila_model.inputs.errors import shown
from nvila_model.inputs.media import Image, MediaWarning, Video
from nvila_model.inputs.sources import is_file
from nvila_model.inputs.tokenizer import IMAGE_TOKEN, VIDEO_TOKEN, clean_text

#: ``{"role": ..., "content": ...}``; content is text, or a list of parts.
Message: TypeAlias = Mapping[str, Any]
Conversation: TypeAlias = Sequence[Message]
Part: TypeAlias = str | Image | Video

ROLES = ("system", "user", "assistant", "tool")

_MEDIA_NAME = re.compile(r"\S+\.(png|jpe?g|gif|webp|avif|bmp|tiff?|heic|mp4|m4v|mov|mkv|webm|avi|mpe?g|ts|m2ts)", re.I)


class MessageError(ValueError):
    """Messages that are not built as expected; the message is one sentence for the user."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One message: who says it, and its text, images and videos in order, no two texts side by side."""

    role: str
    parts: tuple[Part, ...]


def read_batch(messages: Conversation | Sequence[Conversation]) -> list[list[Turn]]:
    """One conversation, a list of them, or only what a user says, as rows of turns. Raises MessageError."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    elif isinstance(messages, Mapping):
        messages = [messages]
    if not isinstance(messages, Sequence) or not messages or isinstance(messages, (bytes, bytearray)):
        raise MessageError("no messages: pass a list of {'role': ..., 'content': ...}, or a list of such lists")
    if all(isinstance(message, Mapping) for message in messages):
        return [read_conversation(messages)]  # pyright: ignore[reportArgumentType]
    return [read_conversation(conversation) for conversation in messages]  # pyright: ignore[reportArgumentType]


def read_conversation(messages: Conversation) -> list[Turn]:
    """The turns of one conversation. Raises MessageError."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise MessageError(f"a conversation is a list of messages, not {_named(messages)}")
    return [_read_turn(message) for message in messages]


def without_media_tokens(text: str) -> str:
    """The text without typed media tokens, which would otherwise be taken for media.

    As in the reference, a text that held one also loses the blanks around it. Unlike there, removal goes
    on until none is left, since one removal can join the halves of another token.
    """
    text = clean_text(text)
    found = [token for token in (IMAGE_TOKEN, VIDEO_TOKEN) if token in text]
    if not found:
        return text
    warnings.warn(f"{', '.join(found)} in the text is removed: pass media as parts", MediaWarning, stacklevel=2)
    while any(token in text for token in (IMAGE_TOKEN, VIDEO_TOKEN)):
        for token in (IMAGE_TOKEN, VIDEO_TOKEN):
            text = text.replace(token, "").strip()
    return text


def _read_turn(message: Message) -> Turn:
    if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
        raise MessageError(f"a message is {{'role': ..., 'content': ...}}, not {_named(message)}")
    if message["role"] not in ROLES:
        raise MessageError(f"role {message['role']!r:.80} is not one of {', '.join(ROLES)}")
    content = message["content"]
    if isinstance(content, (str, Image, Video, PILImage.Image)):
        content = [content]
    if not isinstance(content, Sequence) or isinstance(content, (bytes, bytearray)):
        raise MessageError(f"content is text or a list of parts, not {_named(content)}")
    for part in content:
        if message["role"] == "user" and len(content) > 1 and isinstance(part, str):
            _refuse_path(part)
    return Turn(role=message["role"], parts=tuple(_joined(_read_part(part) for part in content)))


def _read_part(part: Any) -> Part:
    match part:
        case str():
            return without_media_tokens(part)
        case Image() | Video():
            return part
        case PILImage.Image():
            return Image(part)
        case {"type": "text", "text": str(text)}:
            return without_media_tokens(text)
        case {"type": "image" | "image_url" | "video" | "video_url"}:
            return _read_medium(part)
    raise MessageError(
        f"a part is text, an Image, a Video, or {{'type': 'text' | 'image' | 'video', ...}}, not {_named(part)}"
    )


def _read_medium(part: Mapping[str, Any]) -> Image | Video:
    """``{"type": "image", "image" | "url" | "path": source}``, OpenAI's ``image_url``; the same for videos."""
    kind = part["type"].removesuffix("_url")
    made = Image if kind == "image" else Video
    given = [part[key] for key in (kind, f"{kind}_url", "url", "path") if part.get(key) is not None]
    if len(given) == 1:
        source = given[0]
        if isinstance(source, Mapping):  # {"image_url": {"url": ..., "detail": ...}}
            source = source.get("url")
        if isinstance(source, (Image, Video)):
            if isinstance(source, made):
                return source
        elif source is not None:
            return made(source)
    raise MessageError(f"a part of type {part['type']!r} needs one source, its {kind!r} or 'url', not {_named(part)}")


def _refuse_path(text: str) -> None:
    """Refuse a file's path among the parts: it would be read to the model as text. Raises: MessageError."""
    if _MEDIA_NAME.fullmatch(text) and is_file(text):
        raise MessageError(
            f"{shown(text)!r} in the content is a file but would be read as text: pass Image(...) or Video(...) of it"
        )


def _joined(parts: Iterable[Part]) -> list[Part]:
    """Texts side by side as one, so that no media token hides across the seam."""
    joined: list[Part] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] = without_media_tokens(joined[-1] + part)
        else:
            joined.append(part)
    return joined


def _named(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: ..." for key in value) + "}"
    return f"{type(value).__name__} {value!r:.40}" if isinstance(value, (str, int, float)) else type(value).__name__
