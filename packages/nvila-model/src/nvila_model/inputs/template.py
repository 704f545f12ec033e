"""Chat templates: a list of messages to one text, by jinja in a sandbox.

A template comes with a checkpoint, that is, from a stranger: it runs in jinja's immutable sandbox and sees
only the messages and the few functions that published templates expect. One that is not plain
(``templates/plain.py``) runs in a process of its own, which is ended when it takes more time or memory than
``Limits`` allow.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from jinja2 import nodes

from nvila_model.inputs.errors import reason, shown
from nvila_model.inputs.limits import current_limits
from nvila_model.inputs.templates.child import ChildError, render_apart
from nvila_model.inputs.templates.plain import is_plain
from nvila_model.inputs.templates.sandbox import environment, render

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

#: Letters of the longest template that is read; published ones have a few thousand.
LONGEST = 1_000_000


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
        if source is not None and not isinstance(source, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TemplateError(f"the chat template is not valid jinja: it is a {type(source).__name__}, not text")
        self.source = NAMED.get(source, source) if source else QWEN2
        self.variables = dict(variables or {})
        if len(self.source) > LONGEST:
            raise TemplateError(f"the chat template has {len(self.source)} letters, more than {LONGEST}")
        try:
            made = environment()
            tree = made.parse(self.source)
            for node in (*tree.find_all(nodes.Filter), *tree.find_all(nodes.Test)):
                if node.name not in (made.filters if isinstance(node, nodes.Filter) else made.tests):
                    raise TemplateError(f"the chat template is not valid jinja: it uses {shown(node.name, 40)!r}")
            #: The compiled template where it may run here; None where it runs in a process of its own.
            self._template = made.from_string(self.source) if is_plain(tree) else None
        except TemplateError:
            raise
        except Exception as error:  # also what the compiler says to code that is nested too deeply
            raise TemplateError(f"the chat template is not valid jinja: {reason(error)}") from None

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
            if self._template is not None:
                return render(self._template, messages, self.variables, add_generation_prompt=add_generation_prompt)
            limits = current_limits()
            return render_apart(
                self.source,
                messages,
                self.variables,
                add_generation_prompt=add_generation_prompt,
                seconds=limits.template_seconds,
                memory=limits.template_bytes,
            )
        except ChildError as error:
            raise TemplateError(f"the chat template {shown(error, 400)}") from None
        except Exception as error:
            raise TemplateError(f"the chat template refused the conversation: {reason(error)}") from None

    @cached_property
    def end_of_turn(self) -> str:
        """What the template writes right after an answer ("<|im_end|>\\n" for Qwen2)."""
        mark = "\ufdd0"
        question = {"role": "user", "content": "q"}
        text = self.render([question, {"role": "assistant", "content": mark}, question])
        return text.partition(mark)[2]
