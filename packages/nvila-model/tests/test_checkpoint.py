"""Reading and writing checkpoints, and one sentence for everything that is wrong with one."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from nvila_model import NVILA, CheckpointError, Image, Sampling, export
from nvila_model.checkpoint import load_options
from nvila_model.checkpoint.tensor_folder import INDEX, ONE_FILE, CheckpointWarning, resized
from PIL import Image as PILImage
from safetensors.torch import load_file, save_file


@pytest.fixture
def saved(make_model, tmp_path) -> Path:
    folder = tmp_path / "model"
    make_model(some_training_field=[1, 2]).save_pretrained(folder)
    return folder


def edit(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changes}))


def drop(path: Path, field: str) -> None:
    content = json.loads(path.read_text())
    del content[field]
    path.write_text(json.dumps(content))


def test_there_and_back(saved: Path, make_model):
    model, made = NVILA.from_pretrained(saved, dtype="float32"), make_model()
    assert model.state_dict().keys() == made.state_dict().keys()
    assert all(torch.equal(tensor, made.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert json.loads((saved / "config.json").read_text())["some_training_field"] == [1, 2]


@pytest.mark.parametrize(("fast", "found"), [(False, torch.float32), (True, torch.bfloat16)])
@pytest.mark.parametrize("dtype", ["auto", None])
def test_the_format_of_a_checkpoint_is_used_where_it_is_fast(
    saved: Path, dtype: str | None, fast: bool, found: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(load_options, "fast_bfloat16", lambda: fast)
    assert NVILA.from_pretrained(saved, dtype=dtype).llm.dtype == found


@pytest.mark.parametrize(
    "option", [{"dtype": torch.bfloat16}, {"dtype": "bfloat16"}, {"torch_dtype": "torch.bfloat16"}]
)
def test_number_formats(saved: Path, option: dict):
    model = NVILA.from_pretrained(saved, **option)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"dtype": "int8"}, ValueError, "dtype 'int8' is no number format of weights: use 'auto', float32"),
        ({"dtype": torch.int8}, ValueError, "dtype torch.int8 is no number format"),
        ({"device": "warp"}, ValueError, "device 'warp' is none: use 'auto', 'cpu'"),
        ({"device_map": {"": 0}}, ValueError, r"device \{'': 0\} is none"),
        ({"dtype": "auto", "torch_dtype": "auto"}, TypeError, "torch_dtype and dtype are the same option"),
        ({"load_in_4bit": True}, TypeError, "load_in_4bit is not an option of from_pretrained: write a quantized"),
        ({"trust_remote_code": True}, TypeError, "no code of a repository is ever run"),
        ({"colour": 1}, TypeError, "unexpected keyword argument 'colour'"),
    ],
)
def test_options_that_are_refused(saved: Path, options: dict, error: type[Exception], said: str):
    with pytest.raises(error, match=said):
        NVILA.from_pretrained(saved, **options)


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_names_of_transformers(saved: Path, device: str, tmp_path: Path):
    model = NVILA.from_pretrained(saved, device_map=device, local_files_only=True, cache_dir=tmp_path)
    assert model.device.type == ("cuda" if device == "auto" and torch.cuda.is_available() else "cpu")


def test_a_longer_context_scales_positions(saved: Path):
    model = NVILA.from_pretrained(saved, model_max_length=1100)
    assert model.llm.rope_factor == 3
    assert model.context_length == 1100
    assert NVILA.from_pretrained(saved, model_max_length=300).llm.rope_factor == 1


@pytest.mark.parametrize("rows", [3, 5, 8])
def test_new_rows_are_the_mean(rows: int):
    table = torch.randn(5, 4)
    changed = resized(table, rows)
    assert torch.equal(changed[:5], table[:rows])
    torch.testing.assert_close(changed[5:], table.mean(0).expand(max(rows - 5, 0), 4))


def test_tensors_that_are_not_used_are_kept(saved: Path, tmp_path: Path):
    file = saved / "vision_tower" / ONE_FILE
    extra = {"vision_model.head.probe": torch.randn(1, 1, 24)}
    save_file({**load_file(file), **extra}, file)
    model = NVILA.from_pretrained(saved)
    assert list(model.unused) == ["vision_tower.vision_model.head.probe"]
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(
        load_file(tmp_path / "again/vision_tower" / ONE_FILE)["vision_model.head.probe"], *extra.values()
    )


def test_tensors_without_a_place_are_named(saved: Path):
    file = saved / "llm" / ONE_FILE
    frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    save_file({**load_file(file), **frequencies, "model.layers.9.mlp.up_proj.weight": torch.ones(2, 2)}, file)
    with pytest.warns(CheckpointWarning, match=r"1 tensors have no place .*'llm.model.layers.9.mlp.up_proj.weight'"):
        NVILA.from_pretrained(saved)


def test_saving_over_the_loaded_folder(saved: Path):
    model = NVILA.from_pretrained(saved)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.save_pretrained(saved)
    assert all(torch.equal(tensor, before[name]) for name, tensor in NVILA.from_pretrained(saved).state_dict().items())


def without_tensor(folder: Path) -> None:
    tensors = load_file(folder / "llm" / ONE_FILE)
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "llm" / ONE_FILE)


def with_index_that_lies(folder: Path) -> None:
    (folder / "llm" / INDEX).write_text(json.dumps({"weight_map": {"model.other": ONE_FILE}}))


def with_pickle_only(folder: Path) -> None:
    (folder / "llm" / ONE_FILE).unlink()
    (folder / "llm" / "pytorch_model.bin").write_bytes(b"would be unpickled")


def with_half_a_file(folder: Path) -> None:
    file = folder / "mm_projector" / ONE_FILE
    file.write_bytes(file.read_bytes()[:-100])


WRONG = {
    "no root config": (lambda f: (f / "config.json").unlink(), r"config\.json is missing"),
    "no part config": (lambda f: (f / "llm/config.json").unlink(), r"llm/config\.json is missing"),
    "no weights": (lambda f: (f / "llm" / ONE_FILE).unlink(), r"llm/model\.safetensors is missing"),
    "only pickled weights": (with_pickle_only, r"found pytorch_model\.bin: pickled weights are never opened"),
    "half a file": (with_half_a_file, r"mm_projector/model\.safetensors is not a whole safetensors file"),
    "no tensor": (without_tensor, r"llm/ lacks the tensor 'model\.norm\.weight'"),
    "index that lies": (with_index_that_lies, r"lacks 'model\.other', which model\.safetensors\.index\.json promises"),
    "config that is no JSON": (lambda f: (f / "config.json").write_text("{"), r"config\.json is not JSON"),
    "config that is a list": (lambda f: (f / "config.json").write_text("[]"), r"holds a list: expected a JSON object"),
    "no tokenizer": (
        lambda f: (
            [p.unlink() for p in (f / "llm").glob("*o*") if "model" not in p.name and "config" not in p.name]
            + [(f / "llm/vocab.json").unlink(missing_ok=True)]
        ),
        r"tokenizer|vocab",
    ),
    "another width": (
        lambda f: edit(f / "llm/config.json", intermediate_size=64),
        r"has shape \[48, 32\], config\.json says \[64, 32\]",
    ),
    "another model": (lambda f: edit(f / "config.json", model_type="llama"), r"model_type 'llama' is not supported"),
    "another language model": (
        lambda f: edit(f / "llm/config.json", model_type="phi"),
        r"llm/config\.json: model_type",
    ),
    "another tower": (
        lambda f: edit(f / "vision_tower/config.json", model_type="clip"),
        r"vision_tower/config\.json: model_type",
    ),
    "PS3": (lambda f: edit(f / "config.json", ps3=True), r"PS3 vision towers are not supported"),
    "RADIO": (lambda f: edit(f / "config.json", vision_tower_cfg={"model_type": "radio"}), r"RADIO vision towers"),
    "InternViT": (
        lambda f: edit(f / "config.json", vision_tower_cfg={"architectures": ["InternVisionModel"]}),
        r"InternViT",
    ),
    "unknown projector": (
        lambda f: edit(f / "mm_projector/config.json", mm_projector_type="resampler"),
        r"projector type 'resampler' is not",
    ),
    "unknown encoder": (
        lambda f: edit(f / "config.json", video_encoder={"_target_": "os.system"}),
        r"media encoder 'os\.system' is not supported",
    ),
    "sliding window": (
        lambda f: edit(f / "llm/config.json", use_sliding_window=True),
        r"sliding-window attention is not supported",
    ),
    "rope kind": (
        lambda f: edit(f / "llm/config.json", rope_scaling={"type": "yarn", "factor": 2}),
        r"rope_scaling 'yarn' is not supported",
    ),
    "scales": (lambda f: edit(f / "config.json", s2_scales="14,28"), r"must begin with the tower's size 28"),
    "scales that are no numbers": (
        lambda f: edit(f / "config.json", s2_scales="a,b"),
        r"config\.json: s2_scales 'a,b' are not sides in pixels",
    ),
    "too many tiles are few": (
        lambda f: edit(f / "config.json", max_tiles=1),
        r"no model can be built from .*config\.json and its parts: max_tiles 1 is below 9",
    ),
    "no frames": (lambda f: edit(f / "config.json", num_video_frames=0), r"config\.json: num_video_frames: .* 1$"),
    "number format": (lambda f: edit(f / "config.json", model_dtype="torch.int4"), r"config\.json: model_dtype"),
    "layer that is not there": (
        lambda f: edit(f / "config.json", mm_vision_select_layer=-9),
        r"mm_vision_select_layer -9 is none of the tower's 3 layers: expected -3 to -1",
    ),
    "pool of no frames": (
        lambda f: edit(f / "config.json", video_encoder={"_target_": "x.TSPVideoEncoder", "pool_sizes": [[0, 1, 1]]}),
        r"config\.json: video_encoder\.pool_sizes\.0\.0",
    ),
    "heads": (
        lambda f: edit(f / "llm/config.json", num_attention_heads=3),
        r"llm/config\.json: num_attention_heads 3 must be a multiple of num_key_value_heads 2",
    ),
    "heads of the tower": (
        lambda f: edit(f / "vision_tower/config.json", num_attention_heads=7),
        r"vision_tower/config\.json: num_attention_heads 7 must divide hidden_size 24",
    ),
    "another activation": (lambda f: edit(f / "llm/config.json", hidden_act="relu"), r"llm/config\.json: hidden_act"),
    "rope without factor": (
        lambda f: edit(f / "llm/config.json", rope_scaling={"type": "linear"}),
        r"llm/config\.json: the factor of a linear rope_scaling is None",
    ),
    "index that is a list": (
        lambda f: (f / "llm" / INDEX).write_text('{"weight_map": []}'),
        r"model\.safetensors\.index\.json has no weight_map",
    ),
    "index that leads away": (
        lambda f: (f / "llm" / INDEX).write_text('{"weight_map": {"a": "../model.safetensors"}}'),
        r"model\.safetensors\.index\.json has no weight_map from tensors to files beside it",
    ),
    "added tokens that are a list": (
        lambda f: (f / "llm/added_tokens.json").write_text("[]"),
        r"added_tokens\.json holds a list: expected a JSON object",
    ),
    "added tokens without numbers": (
        lambda f: (f / "llm/added_tokens.json").write_text('{"<new>": "a"}'),
        r"added_tokens\.json gives '<new>' the id 'a': expected a number",
    ),
    "flags of added tokens": (
        lambda f: edit(f / "llm/tokenizer_config.json", added_tokens_decoder={"5": {}}),
        r"tokenizer_config\.json: added_tokens_decoder must map ids to tokens",
    ),
    "end token": (lambda f: edit(f / "llm/tokenizer_config.json", eos_token=5), r"eos_token is 5, which is not in"),
    "template that is no text": (
        lambda f: edit(f / "llm/tokenizer_config.json", chat_template=5),
        r"the chat template is not valid jinja",
    ),
    "templates without text": (
        lambda f: edit(f / "llm/tokenizer_config.json", chat_template=[{"name": "default"}]),
        r"each of several chat templates needs a name and a template",
    ),
    "merges that are no text": (
        lambda f: ((f / "llm/tokenizer.json").unlink(), (f / "llm/merges.txt").write_bytes(b"\xff\xfe")),
        r"merges\.txt is not text",
    ),
    "vocabulary that is a list": (
        lambda f: ((f / "llm/tokenizer.json").unlink(), (f / "llm/vocab.json").write_text("[]")),
        r"vocab\.json holds a list: expected a JSON object",
    ),
    "plain S2": (lambda f: edit(f / "config.json", s2=True, dynamic_s2=False), r"s2 without dynamic_s2"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_broken_folder_is_refused_in_one_sentence(saved: Path, fault: str):
    break_it, said = WRONG[fault]
    break_it(saved)
    with pytest.raises(ValueError, match=said) as caught:
        NVILA.from_pretrained(saved)
    assert "\n" not in str(caught.value)
    assert type(caught.value).__module__.startswith("nvila_model"), "an error of ours, which commands show as one line"


def test_a_model_put_together_by_hand_is_not_saved_without_its_description(make_model, tmp_path: Path):
    model = make_model()
    model.config = None
    with pytest.raises(CheckpointError, match="no config or no processor"):
        model.save_pretrained(tmp_path)


def test_encoder_settings_may_be_json_strings(saved: Path):
    edit(saved / "config.json", video_encoder='{"_target_": "x.TSPVideoEncoder", "pool_sizes": [[2, 1, 1]]}')
    assert NVILA.from_pretrained(saved).video_framing.pool.sizes == [(2, 1, 1)]


def test_the_folder_may_move_after_loading(saved: Path, tmp_path: Path):
    model = NVILA.from_pretrained(saved)
    shutil.rmtree(saved)
    model.save_pretrained(tmp_path / "elsewhere")
    assert NVILA.from_pretrained(tmp_path / "elsewhere").llm.vocab_size == model.llm.vocab_size


LITE = {
    "image_aspect_ratio": "dynamic",
    "dynamic_s2": False,
    "projector": {"mm_projector_type": "mlp_downsample_3x3_fix"},
}


AT_THE_END = [{"role": "user", "content": ["Look: ", Image(PILImage.new("RGB", (90, 40), "red"))]}]


@pytest.mark.parametrize("strips", [True, False])
@pytest.mark.parametrize("layout", ["original", "hf"])
def test_the_newline_of_a_picture_at_the_end_outlives_a_layout(make_model, tmp_path: Path, layout: str, strips: bool):
    model = make_model(**LITE, strip_messages=strips)
    export(model, tmp_path, layout=layout)
    processor = NVILA.from_pretrained(tmp_path, dtype="float32").processor
    (ids,), (wanted,) = processor(AT_THE_END).input_ids, model.processor(AT_THE_END).input_ids
    assert torch.equal(ids, wanted)
    (other,) = replace(processor, strip_messages=not strips)(AT_THE_END).input_ids
    assert len(other) - len(ids) == (1 if strips else -1)


@pytest.mark.parametrize("architectures", [["NVILALiteForConditionalGeneration"], ["Other"], None])
def test_lite_models_of_others_keep_it_and_may_call_themselves_nvila(make_model, tmp_path: Path, architectures):
    model = make_model(**LITE)
    export(model, tmp_path, layout="hf")
    edit(tmp_path / "config.json", model_type="nvila", architectures=architectures)
    drop(tmp_path / "config.json", "strip_messages")  # which only we write
    again = NVILA.from_pretrained(tmp_path, dtype="float32")
    assert again.tiler == model.tiler
    assert not again.processor.strip_messages


@pytest.mark.parametrize("kind", [{}, LITE])
def test_the_hugging_face_layout_there_and_back(make_model, tmp_path: Path, kind: dict):
    model = make_model(**kind)
    export(model, tmp_path, layout="hf", shard_size="40KB")
    root = json.loads((tmp_path / "config.json").read_text())
    assert root["architectures"][0].startswith("NVILALite" if kind else "NVILAFor")
    assert root["image_token_id"] == model.processor.tokenizer.image_id
    again = NVILA.from_pretrained(tmp_path, dtype="float32")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert again.tiler == model.tiler
    messages = [{"role": "user", "content": [Image(PILImage.new("RGB", (90, 40), "red")), "What colour?"]}]
    sampling = Sampling(max_new_tokens=6)
    assert again.generate(messages, sampling).ids == model.generate(messages, sampling).ids


def test_a_model_without_a_hugging_face_layout_says_so(make_model, tmp_path: Path):
    model = make_model(image_aspect_ratio="resize", dynamic_s2=False)
    with pytest.raises(CheckpointError, match="resize with mlp_downsample_2x2_fix has no Hugging Face layout"):
        export(model, tmp_path, layout="hf")


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ({"max_batch_size_siglip": 4}, "NVILA-8B-HD-Video is not supported"),
        (
            {"model_type": "vila", "architectures": ["VILAForConditionalGeneration"]},
            "model_type 'vila' is not supported: expected nvila or nvila_lite",
        ),
    ],
)
def test_hugging_face_kinds_that_are_not_here(make_model, tmp_path: Path, field: dict, said: str):
    export(make_model(), tmp_path, layout="hf")
    edit(tmp_path / "config.json", **field)
    with pytest.raises(CheckpointError, match=said):
        NVILA.from_pretrained(tmp_path)
