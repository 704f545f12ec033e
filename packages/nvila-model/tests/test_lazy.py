"""Public faces whose names come when they are used."""

import subprocess
import sys

import nvila_model.inputs
import pytest
from nvila_model.lazy import lazy_names

FACES = ("", ".checkpoint", ".cpu", ".generation", ".inputs", ".network", ".quantization")


def test_faces_cost_nothing_to_import():
    faces = "; ".join(f"import nvila_model{face}" for face in FACES)
    heavy = "{'torch', 'numpy', 'pydantic', 'PIL', 'av', 'tokenizers'}"
    code = f"import sys; {faces}; assert not {heavy} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_name_is_the_module_s_own():
    from nvila_model.inputs.media import Image

    assert nvila_model.inputs.Image is Image
    assert "Image" in dir(nvila_model.inputs)


def test_an_unknown_name_is_an_attribute_error():
    get, _ = lazy_names("nvila_model.inputs", {"media": "Image"})
    with pytest.raises(AttributeError, match=r"module 'nvila_model.inputs' has no attribute 'Picture'"):
        get("Picture")
