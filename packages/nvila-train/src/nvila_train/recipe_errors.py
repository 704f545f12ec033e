"""What is wrong with a recipe, in one sentence that names the field and the nearest name that there is."""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any, get_args, get_origin

from pydantic import ValidationError


class RecipeError(ValueError):
    """A recipe that cannot be used; the message names the file, the field and what is wrong."""


MISNAMED = ("extra_forbidden", "unexpected_keyword_argument")


def sentence(error: ValidationError, model: type[Any]) -> str:
    """The first fault of a table, by its place in the table; a wrong name before a field that is missing for it."""
    found = error.errors()
    first = next((each for each in found if each["type"] in MISNAMED), found[0])
    place = [part for part in first["loc"] if part != "[key]"]
    where = ".".join(str(part) for part in place) or "recipe"
    given = first["input"]
    match first["type"]:
        case "extra_forbidden" | "unexpected_keyword_argument":
            names = fields_at(model, place[:-1])
            return f"{where}: there is no such field, {nearest(str(place[-1]), names)}"
        case "literal_error":
            allowed = first.get("ctx", {})["expected"].replace("'", "").replace(" or ", ", ").split(", ")
            return f"{where}: there is no {given!r}, {nearest(str(given), allowed)}"
        case "missing":
            return f"{where}: is missing: write it down"
        case kind if isinstance(given, str) and kind.startswith(("int_", "float_", "bool_")):
            return f"{where}: {given!r} is text, not a number: leave the quotes out"
        case _:
            said = first["msg"].removeprefix("Value error, ")
            return f"{where}: {said}" if first["type"] == "value_error" else f"{where}: {said}, not {brief(given)}"


def nearest(name: str, names: Sequence[str]) -> str:
    """What to write instead of a name."""
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"choose from {', '.join(names)}"


def brief(value: Any) -> str:
    """A value as it may stand in a sentence."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def fields_at(model: type[Any], place: Sequence[Any]) -> list[str]:
    """Names of the fields of the table at a place of a recipe."""
    kinds: list[Any] = [model]
    for part in place:
        found: list[Any] = []
        for kind in kinds:
            if part in names_of(kind):
                found += tables_in(annotation(kind, str(part)))
            elif isinstance(part, int):
                found.append(kind)
        kinds = found or kinds
    return list(dict.fromkeys(name for kind in kinds for name in names_of(kind)))


def names_of(kind: Any) -> list[str]:
    """Fields of a pydantic model or a dataclass."""
    return list(getattr(kind, "model_fields", None) or getattr(kind, "__dataclass_fields__", {}))


def annotation(kind: Any, name: str) -> Any:
    """The type of a field."""
    return kind.model_fields[name].annotation if hasattr(kind, "model_fields") else None


def tables_in(kind: Any) -> Iterator[Any]:
    """Models and dataclasses that a type is made of."""
    if names_of(kind) and get_origin(kind) is None:
        yield kind
    for inside in get_args(kind):
        yield from tables_in(inside)
