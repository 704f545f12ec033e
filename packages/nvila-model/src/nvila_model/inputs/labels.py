"""Which tokens of a conversation are learnt: the assistant's answers and the token that ends each turn.

The text of a conversation is known to be questions and answers by turns, so it is cut there: the template
is rendered once with a mark in place of every answer, and the pieces between the marks and the answers are
encoded one by one. Every token then belongs to a question or to an answer by construction, and an answer
begins after exactly the ids that a prompt for it ends with.

The reference instead encodes the whole text and matches it token by token against the conversation with
the answers taken out; where an answer holds a token that comes next in the template (a newline, in Qwen2's),
the match slips. ``match_greedily`` reproduces that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nvila_model.inputs.template import TemplateError
from nvila_model.inputs.tokenizer import (
    ANSWER_MARK,
    SENTINEL_TOKEN,
    TEXT_MARK,
    Tokenizer,
)

#: The label of a token that is not learnt.
IGNORE = -100

TextMessage = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class LabelledText:
    """Ids of a whole conversation and what is learnt of them.

    Attributes:
        text: the conversation after the chat template.
        input_ids: the ids of ``text``.
        labels: as many; the id itself where it is learnt, ``IGNORE`` elsewhere.
    """

    text: str
    input_ids: tuple[int, ...]
    labels: tuple[int, ...]


def label_answers(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str | None]]) -> LabelledText:
    """Learn every token of every answer and the end-of-turn token after it, nothing else.

    Args:
        messages: ``{"role", "content"}`` with content as text, media tokens in place, and special tokens of somebody's
            own marked (``Tokenizer.as_text``); those that are not become real ones.

    Raises: TemplateError if the template rewrites answers, so that they cannot be found in its text.
    """
    messages = _stripped(messages)
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    text = tokenizer.template.render(messages)
    between = tokenizer.template.render(_with_answers(messages, ANSWER_MARK)).split(ANSWER_MARK)
    if len(between) != len(answers) + 1 or _interleave(between, answers) != text:
        raise TemplateError("the chat template rewrites answers: labels cannot be told from its text")

    input_ids: list[int] = []
    labels: list[int] = []
    for index, piece in enumerate(between):
        ids = tokenizer.encode_marked(piece)
        # The first token after an answer ends its turn.
        learnt = ids[:1] if index > 0 else []
        input_ids += ids
        labels += learnt + [IGNORE] * (len(ids) - len(learnt))
        if index < len(answers):
            answer = tokenizer.encode_marked(answers[index])
            input_ids += answer
            labels += answer
    return LabelledText(text=text.replace(TEXT_MARK, ""), input_ids=tuple(input_ids), labels=tuple(labels))


def match_greedily(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str | None]]) -> LabelledText:
    """The reference's labels, with their slips: an answer with a newline loses its first newline, and the
    newline after its end-of-turn token is learnt instead. All are ``IGNORE`` where the match fails.

    Source: golden ``cases/*/labels.json``.
    """
    messages = _stripped(messages)
    text = tokenizer.template.render(messages)
    input_ids = tokenizer.encode_marked(text)
    marked = tokenizer.encode_marked(tokenizer.template.render(_with_answers(messages, SENTINEL_TOKEN)))
    for before in (0, 1):
        template = _without_answers(marked, tokenizer.sentinel_id, before=before)
        labels, matched = _match(input_ids, template)
        if matched == len(template):
            break
    else:
        labels = [IGNORE] * len(input_ids)
    return LabelledText(text=text.replace(TEXT_MARK, ""), input_ids=tuple(input_ids), labels=tuple(labels))


def _without_answers(marked: Sequence[int], sentinel: int, *, before: int) -> list[int]:
    """Drop each sentinel, the token after it, and ``before`` tokens ahead of it."""
    dropped: set[int] = set()
    for place, token in enumerate(marked[:-1]):
        if token == sentinel:
            dropped.update(range(max(place - before, 0), place + 2))
    return [token for place, token in enumerate(marked) if place not in dropped]


def _match(input_ids: Sequence[int], template: Sequence[int]) -> tuple[list[int], int]:
    labels: list[int] = []
    matched = 0
    for token in input_ids:
        if matched < len(template) and token == template[matched]:
            matched += 1
            labels.append(IGNORE)
        else:
            labels.append(token)
    return labels, matched


def _stripped(messages: Sequence[Mapping[str, str | None]]) -> list[TextMessage]:
    """The messages that say something, each without blanks around it, as templates get them."""
    return [
        {"role": message["role"] or "", "content": content.strip()}
        for message in messages
        if (content := message["content"]) is not None
    ]


def _with_answers(messages: Sequence[TextMessage], answer: str) -> list[TextMessage]:
    return [
        {"role": "assistant", "content": answer} if message["role"] == "assistant" else message for message in messages
    ]


def _interleave(between: Sequence[str], answers: Sequence[str]) -> str:
    return "".join(piece + answer for piece, answer in zip(between, [*answers, ""], strict=True))
