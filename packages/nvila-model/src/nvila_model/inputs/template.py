"""Chat templates: a list of messages to one text, by jinja in a sandbox.

A template comes with a checkpoint, that is, from a stranger: it runs in jinja's immutable sandbox and sees
only the messages and the few functions that published templates expect.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

#: Qwen2's template as upstream writes it into checkpoints. Qwen2's own ends the sentence with a period; the
#: models were trained on the text without it.
QWEN2 = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant<|im_end|>\\n' }}{% endif %}"
    "{% for message in messages if message['content'] is not none %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

#: Templates that ``chat_template`` of a checkpoint's ``config.json`` may name.
NAMED = {"qwen2": QWEN2}


class TemplateError(ValueError):
    """A chat template that cannot be read, or that refuses the conversation."""


class ChatTemplate:
    """A jinja chat template.

    Args:
        source: the template, or a name in ``NAMED``; None takes ``QWEN2``.
        variables: further names it may use, such as ``bos_token``.

    Raises: TemplateError if the source is not a jinja template.
    """

    def __init__(self, source: str | None = None, *, variables: Mapping[str, Any] | None = None) -> None:
        self.source = NAMED.get(source, source) if source else QWEN2
        self.variables = dict(variables or {})
        try:
            self._template = _environment().from_string(self.source)
        except (jinja2.TemplateError, TypeError) as error:  # a template that is no text
            raise TemplateError(f"the chat template is not valid jinja: {error}") from None

    def __getstate__(self) -> dict[str, Any]:
        return {"source": self.source, "variables": self.variables}  # compiled templates cannot be copied

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(**state)

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False) -> str:
        """The text of the messages; with ``add_generation_prompt`` it ends where an answer begins.

        Args:
            messages: ``{"role": ..., "content": ...}`` with content already text.
            add_generation_prompt: open the assistant's next turn.

        Raises: TemplateError with the template's own words when it refuses the conversation.
        """
        if not messages:
            raise TemplateError("a conversation of 0 messages cannot be rendered: pass at least one")
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                **self.variables,
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            raise TemplateError(f"the chat template refused the conversation: {error}") from None

    @cached_property
    def end_of_turn(self) -> str:
        """What the template writes right after an answer ("<|im_end|>\\n" for Qwen2)."""
        mark = "\ufdd0"
        question = {"role": "user", "content": "q"}
        text = self.render([question, {"role": "assistant", "content": mark}, question])
        return text.partition(mark)[2]


def _environment() -> ImmutableSandboxedEnvironment:
    # trim and lstrip as published templates are written for them.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class _GenerationTag(Extension):
    """``{% generation %}`` marks answers in some published templates; here it only shows its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja declares it as a plain set

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    # jinja's own filter escapes HTML characters, which a model was never trained on.
    return json.dumps(value, ensure_ascii=options.pop("ensure_ascii", False), indent=indent, **options)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
