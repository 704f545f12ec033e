"""General training knows nano through one module."""

import ast
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "nvila_train"


def test_one_module_imports_nano() -> None:
    importing = {
        path.name
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("nvila_train.nano.")
        if "nano" not in path.relative_to(SOURCE).parts
    }
    assert importing == {"nano_recipes.py"}
