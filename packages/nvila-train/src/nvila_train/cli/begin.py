"""``nvila-train begin``."""

from pathlib import Path
from typing import Annotated

import typer


def begin(
    model: Annotated[str, typer.Argument(help="What is to be trained: a preset's name, 'nano', or a folder.")],
    llm: Annotated[str, typer.Option(help="A Qwen2: a folder, or a hub repository.")],
    vision: Annotated[str, typer.Option(help="A SigLIP: a folder, a hub repository, or open-clip:NAME:WEIGHTS.")],
    out: Annotated[Path, typer.Option(help="Folder of the checkpoint, which a recipe names in init.")],
    seed: Annotated[int, typer.Option(help="Of the projector's weights.")] = 0,
) -> None:
    """Put a language model and a vision tower together, as the five stages begin with them."""
    from nvila_train.compose import begin_with
    from nvila_train.model_size import description
    from nvila_train.recipe_errors import RecipeError

    if out.exists():
        raise RecipeError(f"{out} exists: remove it, or choose another --out")
    begin_with(description(model), llm=llm, vision=vision, seed=seed).save_pretrained(str(out))
    print(out)
