"""Quantization rules in a TOML file: which layer becomes what, the first match decides."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

from nvila_kernels import W4A16, W8A8, QuantPolicy
from nvila_kernels.policy import Scheme
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator


class PolicyError(ValueError):
    """A file of rules that cannot be used."""


class Rule(BaseModel):
    """One ``[[rule]]``.

    Attributes:
        layers: a glob over dotted names, or a list of them; a star stands for any text.
        skip: the layers stay as they are.
        bits: 4 for the weights alone, 8 for weights and activations.
        group: inputs that share a 4-bit scale; 0 for a whole row.
        accumulate: of 4-bit products; ``float16`` sums on the tensor cores, for float16 activations.
    """

    model_config = ConfigDict(extra="forbid")

    layers: str | list[str]
    skip: bool = False
    bits: Literal[4, 8] | None = None
    group: int | None = Field(default=None, ge=0)
    accumulate: Literal["float32", "float16"] | None = None

    @model_validator(mode="after")
    def decided(self) -> Rule:
        if self.skip == (self.bits is not None):
            raise ValueError("a rule says either skip = true or bits = 4 or 8")
        if self.group is not None and self.bits != 4:
            raise ValueError("group belongs to bits = 4")
        if self.accumulate is not None and self.bits != 4:
            raise ValueError("accumulate belongs to bits = 4")
        return self

    @property
    def scheme(self) -> Scheme | None:
        if self.bits is None:
            return None
        if self.bits == 8:
            return W8A8()
        return W4A16(group_size=128 if self.group is None else self.group, accumulate=self.accumulate or "float32")


class Rules(BaseModel):
    model_config = ConfigDict(extra="forbid")

    rule: list[Rule] = Field(min_length=1)


def read_policy(file: Path) -> QuantPolicy:
    """The policy that a file describes. Raises: PolicyError naming the file and the rule."""
    try:
        rules = Rules.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PolicyError(f"{file} is not a TOML file of rules: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = " ".join(str(key + 1) if isinstance(key, int) else str(key) for key in first["loc"])
        raise PolicyError(f"{file}, {where or 'the whole'}: {first['msg'].removeprefix('Value error, ')}") from None
    pairs = [
        (glob, rule.scheme)
        for rule in rules.rule
        for glob in ([rule.layers] if isinstance(rule.layers, str) else rule.layers)
    ]
    return QuantPolicy(tuple(pairs))
