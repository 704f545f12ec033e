"""What ``ask`` and ``chat`` are asked to do: their options, written down once.

typer reads the options of a command from its signature. ``takes_request`` writes the fields of ``Request`` into the
signature of a command that has a parameter ``request``, so that the command itself sees one value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any, get_type_hints

from nvila_model.cli import options

if TYPE_CHECKING:
    from nvila_model.cli.media_arguments import VideoOptions
    from nvila_model.generation.sampling import Sampling

SAMPLING = ("max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed")


@dataclass(frozen=True, kw_only=True)
class Request:
    """Which model answers, how the answer is drawn, and how media are read; a field an option, in the order of help."""

    model: options.Model = None
    adapter: options.Adapter = None
    revision: options.Revision = None
    offline: options.Offline = False
    token: options.Token = None
    device: options.Device = "cpu"
    dtype: options.DtypeOption = None
    threads: options.Threads = None
    accumulate: options.Accumulate = None
    max_new_tokens: options.MaxNewTokens = None
    temperature: options.Temperature = 0.0
    top_p: options.TopP = 1.0
    top_k: options.TopK = 0
    repetition_penalty: options.RepetitionPenalty = 1.0
    seed: options.Seed = None
    stop: options.Stop = None
    frames: options.Frames = None
    fps: options.Fps = None
    allow_truncated: options.AllowTruncated = False
    allow_private: options.AllowPrivate = False
    limit: options.LimitWords = None
    max_tiles: options.MaxTiles = None

    @property
    def source(self) -> options.Source:
        """The model to load, and how."""
        return options.Source(**{field.name: getattr(self, field.name) for field in fields(options.Source)})

    @property
    def video(self) -> VideoOptions:
        """How media are read."""
        from nvila_model.cli.media_arguments import VideoOptions

        return VideoOptions(**{field.name: getattr(self, field.name) for field in fields(VideoOptions)})

    def sampling(self) -> Sampling:
        """How answers are drawn. Raises: CommandError for a number out of its range."""
        return options.sampling(**{name: getattr(self, name) for name in SAMPLING}, stop=tuple(self.stop or ()))


def takes_request(command: Callable[..., None]) -> Callable[..., None]:
    """A command with the options of ``Request`` in place of its parameter ``request``."""
    written = signature(command, eval_str=True)
    hints = get_type_hints(Request, include_extras=True)
    names = [field.name for field in fields(Request)]
    parameters: list[Parameter] = []
    for parameter in written.parameters.values():
        if parameter.name == "request":
            parameters += [
                Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name])
                for field in fields(Request)
            ]
        else:
            parameters.append(parameter.replace(kind=Parameter.KEYWORD_ONLY))

    @wraps(command)
    def run(**given: Any) -> None:
        request = Request(**{name: given.pop(name) for name in names})
        with options.media_limits(request.limit):
            command(request=request, **given)

    run.__dict__["__signature__"] = written.replace(parameters=parameters)
    return run
