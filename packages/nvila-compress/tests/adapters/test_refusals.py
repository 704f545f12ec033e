"""What cannot be is refused in one sentence, and nothing is changed then."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from nvila_compress import GridError, SpatialToChannel, TokenLearner
from nvila_compress.adapters import (
    Attached,
    Family,
    Placing,
    attach,
    detach,
    load_compressed,
    register_family,
    supported_models,
)
from nvila_compress.adapters import family as families
from torch import nn

transformers = pytest.importorskip("transformers")
import tiny_hosts  # noqa: E402
from tiny_hosts import Case  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def case() -> Case:
    return tiny_hosts.make("llava")


def refuses(case: Case, compressor: Any, error: type[Exception], match: str, **other: Any) -> None:
    before = copy.deepcopy(case.model.state_dict())
    with pytest.raises(error, match=match):
        attach(other.get("model", case.model), other.get("processor", case.processor), compressor)
    assert case.model.state_dict().keys() == before.keys()
    assert not hasattr(case.model.config, "nvila_compressor")
    assert case.count(case.inputs()) == [36]


def test_wrong_objects(case: Case) -> None:
    refuses(case, SpatialToChannel(2), TypeError, "a Linear is no transformers model", model=nn.Linear(2, 2))
    refuses(case, SpatialToChannel(2), TypeError, "a str is no processor", processor="llava")
    refuses(case, nn.Linear(2, 2), TypeError, "Linear is no Compressor")
    refuses(case, "stc-2-2", ValueError, "no compressor named 'stc-2-2'|is no size")
    refuses(case, TokenLearner(channels=7, tokens=4), ValueError, "tokens 16 wide, but built for 7")
    part = nn.Module()
    part.config = case.model.config
    refuses(case, SpatialToChannel(2), ValueError, "has no multi_modal_projector: pass the whole model", model=part)


def test_a_second_compressor(case: Case) -> None:
    attached = attach(case.model, case.processor, "stc-2x2")
    assert attached == Attached(layer="model.multi_modal_projector.linear_1", tokens_before=36, tokens_after=9)
    with pytest.raises(ValueError, match="has a compressor already: detach it first"):
        attach(case.model, case.processor, "stc-3x3")
    other = tiny_hosts.make("llava")
    with pytest.raises(ValueError, match="counts for a compressor already: detach it first"):
        attach(other.model, case.processor, "stc-3x3")
    detach(case.model, case.processor)
    with pytest.raises(ValueError, match="nothing to detach"):
        detach(case.model, case.processor)


def test_quantized_and_offloaded_layers(case: Case) -> None:
    projector = case.model.model.multi_modal_projector
    layer = projector.linear_1

    class Int8Linear(nn.Linear):
        pass

    projector.linear_1 = Int8Linear(16, 32)
    refuses(case, "stc-2x2", ValueError, "linear_1 is a Int8Linear: attach the compressor before that change")
    projector.linear_1 = nn.Linear(16, 32, device="meta")
    with pytest.raises(ValueError, match="linear_1 is offloaded: attach before offloading"):
        attach(case.model, case.processor, "stc-2x2")
    projector.linear_1 = layer
    layer.weight = nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"linear_1 is quantized \(torch.int8\)"):
        attach(case.model, case.processor, "stc-2x2")


def test_tokens_that_make_no_grid(case: Case) -> None:
    case.processor.image_processor.do_center_crop = False
    with pytest.raises(ValueError, match=r"image size .* varies"):
        attach(case.model, case.processor, "stc-2x2")
    other = tiny_hosts.make("paligemma")
    other.processor.image_seq_length = 35
    with pytest.raises(GridError, match="35 tokens of one tile make no square"):
        attach(other.model, other.processor, "stc-2x2")


def test_hosts_that_cannot_be_helped() -> None:
    class Model(nn.Module):
        def __init__(self, model_type: str) -> None:
            super().__init__()
            self.config = transformers.PretrainedConfig()
            self.config.model_type = model_type

    with pytest.raises(ValueError, match="'mllama': its language model reads the picture by cross-attention"):
        attach(Model("mllama"), None, "stc-2x2")
    with pytest.raises(ValueError, match=r"no adapter for 'bert' models .*: register_family adds one"):
        attach(Model("bert"), None, "stc-2x2")
    assert not {"mllama", "bert"} & set(supported_models())


def test_hosts_that_the_installed_version_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(families, "version", lambda name: "4.49.0")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_vl", "nvila_compressor": {"name": "stc"}}))
    with pytest.raises(ValueError, match=r"qwen3_vl needs transformers>=5.10, but 4.49.0 is installed"):
        load_compressed(tmp_path)


def test_folders_that_are_not_whole(case: Case, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json"):
        load_compressed(tmp_path)
    case.model.save_pretrained(tmp_path / "host")
    with pytest.raises(ValueError, match=r"no nvila_compressor in its config\.json: load it with from_pretrained"):
        load_compressed(tmp_path / "host")
    config = json.loads((tmp_path / "host" / "config.json").read_text())
    config["nvila_compressor"] = {"name": "stc", "factor": 2}
    (tmp_path / "host" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"lacks multi_modal_projector.linear_1.linear_1.bias: it was not saved whole"):
        load_compressed(tmp_path / "host", processor=case.processor)


def test_a_compressor_without_a_name_works_but_is_not_saved(case: Case, tmp_path: Path) -> None:
    class Unnamed(SpatialToChannel):
        pass

    attach(case.model, case.processor, Unnamed(2))
    assert case.count(case.inputs()) == [9]
    with pytest.raises(ValueError, match="Unnamed has no name"):
        case.model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_family_of_ones_own(case: Case) -> None:
    """A row under another name: a host that is LLaVA in all but its model type."""
    row = families.find_family(case.model.config)
    assert isinstance(row.placing, Placing)
    register_family(Family(model_type="my_llava", placing=row.placing, layer="linear_1"))
    try:
        case.model.config.__class__.model_type = "my_llava"
        assert attach(case.model, case.processor, "stc-2x2").tokens_after == 9
        assert "my_llava" in supported_models()
    finally:
        case.model.config.__class__.model_type = "llava"
        families._FAMILIES.pop("my_llava")


def test_imported_without_transformers() -> None:
    """And without importing it where it is there."""
    code = "import sys, nvila_compress.adapters as a; assert a.supported_models() and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
