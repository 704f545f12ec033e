"""Jinja as published chat templates expect it, in its immutable sandbox; also as a process that only renders.

``serve`` is the whole program of that process: a request a line on standard input, an answer a line on standard
output, both JSON. It imports nothing but jinja2.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

#: Letters of the longest text that ``serve`` hands back; no context holds as many.
LONGEST_TEXT = 64_000_000


def environment() -> ImmutableSandboxedEnvironment:
    """Blocks trimmed as published templates are written for, and the few functions that they call."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag]
    )
    made.filters["tojson"] = _to_json
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = _strftime_now
    return made


def render(
    template: jinja2.Template,
    messages: Sequence[Mapping[str, Any]],
    variables: Mapping[str, Any],
    *,
    add_generation_prompt: bool,
) -> str:
    """The text that a template makes of messages."""
    return template.render(
        {
            **variables,
            "messages": [dict(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
        }
    )


def serve() -> None:
    """Answer requests until standard input ends; the first line bounds this process's memory in bytes."""
    limit = int(sys.stdin.readline())
    try:
        import resource
    except ImportError:  # Windows: only time is bounded there
        pass
    else:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    templates: dict[str, jinja2.Template] = {}
    made = environment()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            source = request["source"]
            if source not in templates:
                templates.clear()
                templates[source] = made.from_string(source)
            text = render(
                templates[source],
                request["messages"],
                request["variables"],
                add_generation_prompt=request["add_generation_prompt"],
            )
            if len(text) > LONGEST_TEXT:
                raise ValueError(f"its text has {len(text)} letters, more than {LONGEST_TEXT}")
            answer = json.dumps({"text": text})
        except MemoryError:
            answer = json.dumps({"error": f"it needs more than {limit} bytes of memory"})
        except Exception as error:
            answer = json.dumps({"error": f"{error}"[:2000] or type(error).__name__})
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()


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
