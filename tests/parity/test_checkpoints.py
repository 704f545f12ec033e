"""The reference's checkpoint folders: what they hold is kept, and comes back the same."""

import filecmp
import shutil
from pathlib import Path

import torch
from nvila_model import NVILA
from nvila_model.checkpoint.original import OriginalTensors
from nvila_model.checkpoint.tensor_folder import read_json


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_second_load_is_identical(golden_checkpoint, tmp_path):
    first = NVILA.from_pretrained(golden_checkpoint)
    first.save_pretrained(tmp_path / "first")
    second = NVILA.from_pretrained(tmp_path / "first")
    second.save_pretrained(tmp_path / "second")
    assert first.state_dict().keys() == second.state_dict().keys()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    assert files(tmp_path / "first") == files(tmp_path / "second")
    for name in files(tmp_path / "first"):
        assert filecmp.cmp(tmp_path / "first" / name, tmp_path / "second" / name, shallow=False), name


def test_every_tensor_and_field_is_written_back(golden_checkpoint, tmp_path):
    NVILA.from_pretrained(golden_checkpoint).save_pretrained(tmp_path)
    before, after = OriginalTensors(golden_checkpoint), OriginalTensors(tmp_path)
    assert set(after) == set(before)
    for name in before:
        kept = min(before[name].shape[0], after[name].shape[0])
        assert torch.equal(before[name][:kept].float(), after[name][:kept].float()), name
    for file in ("config.json", "llm/config.json", "vision_tower/config.json", "mm_projector/config.json"):
        old, new = read_json(golden_checkpoint / file), read_json(tmp_path / file)
        assert {key: value for key, value in new.items() if key != "vocab_size"} == {
            key: value for key, value in old.items() if key != "vocab_size"
        }, file


def test_shards_change_nothing(golden_checkpoint, tmp_path):
    model = NVILA.from_pretrained(golden_checkpoint)
    model.save_pretrained(tmp_path, shard_size="60KB")
    assert len(list((tmp_path / "llm").glob("model-*.safetensors"))) > 1
    again = NVILA.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    model.save_pretrained(tmp_path)
    assert [path.name for path in (tmp_path / "llm").glob("model*")] == ["model.safetensors"]


def test_either_form_of_the_tokenizer_will_do(golden_checkpoint, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(golden_checkpoint, folder)
    whole = NVILA.from_pretrained(folder).processor.tokenizer
    (folder / "llm" / "tokenizer.json").unlink()
    parts = NVILA.from_pretrained(folder).processor.tokenizer
    text = "<|im_start|>user\n<image>Zwölf 12 boxes,\n\n  don't!<|im_end|>"
    assert parts.encode(text) == whole.encode(text)
    assert len(parts) == len(whole)


def test_weights_are_not_copied_where_they_fit(golden_checkpoint):
    tensors = OriginalTensors(golden_checkpoint)
    stored = tensors["llm.model.norm.weight"].dtype
    model = NVILA.from_pretrained(golden_checkpoint, dtype=stored)
    storage = model.llm.layers[0].mlp.up_proj.weight.untyped_storage()
    assert storage.nbytes() >= model.llm.layers[0].mlp.up_proj.weight.numel() * stored.itemsize
    assert model.llm.layers[0].mlp.up_proj.weight.dtype == stored
    with torch.no_grad():
        assert torch.isfinite(model.llm(model.llm.embed_tokens.weight[None, :5]).float()).all()
