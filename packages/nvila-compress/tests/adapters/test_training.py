"""Hosts with a compressor in what users do to models: peft, Trainer, checkpointing, compiling, dtypes."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from nvila_compress import SpatialToChannel, TokenLearner, UniformChoice
from nvila_compress.adapters import CompressedLinear, attach, detach, load_compressed

transformers = pytest.importorskip("transformers")
import tiny_hosts  # noqa: E402
from tiny_hosts import Case  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*will be removed in v6:FutureWarning"),  # what peft calls
]
NAMES = list(tiny_hosts.HOSTS)
DEFAULT = ("llava", "qwen2_vl")
HOSTS = [pytest.param(name, marks=() if name in DEFAULT else pytest.mark.slow) for name in NAMES]


def logits(case: Case, counts: tuple[int, ...] = (1,)) -> torch.Tensor:
    inputs = case.inputs(counts)
    inputs.pop("labels", None)
    with torch.no_grad():
        return case.model(**inputs, logits_to_keep=1).logits[:, -1]


def loss(case: Case) -> torch.Tensor:
    inputs = case.inputs((1,))
    inputs.pop("labels", None)
    return case.model(**inputs, labels=inputs["input_ids"]).loss


def lora(case: Case, layer: str) -> Any:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(case.model, peft.LoraConfig(target_modules=[layer], r=2, init_lora_weights=False))


LAYERS = {"paligemma": "linear", "idefics3": "proj", "smolvlm": "proj"}
FRONT = ["llava", "vipllava", "video_llava", "paligemma", "idefics3", "smolvlm", "internvl", "aya_vision", "llama4"]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ("llava", "smolvlm") else pytest.mark.slow) for name in FRONT]
)
def test_lora_hits_the_compressed_layer_by_its_own_name(name: str) -> None:
    """After attaching: the adapter reads folded tokens, learns, and merges into the same logits."""
    case = tiny_hosts.make(name)
    attached = attach(case.model, case.processor, "stc-2x2")
    layer = LAYERS.get(name, "linear_1")
    before = logits(case)
    case.model = lora(case, layer)
    assert any(f"{attached.layer}.{layer}.lora_A" in key for key, _ in case.model.named_parameters())
    changed = logits(case)
    assert not torch.allclose(before, changed)
    loss(case).backward()
    grads = [p.grad for key, p in case.model.named_parameters() if "lora_" in key]
    assert all(grad is not None for grad in grads)
    case.model = case.model.merge_and_unload()
    torch.testing.assert_close(logits(case), changed, rtol=1e-4, atol=1e-5)
    detach(case.model, case.processor)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "llava" else pytest.mark.slow) for name in FRONT]
)
def test_attached_to_a_peft_model(name: str) -> None:
    """LoRA first: base and adapter read the mean of the folded tokens, as one layer of their sum would."""
    case = tiny_hosts.make(name)
    layer = LAYERS.get(name, "linear_1")
    case.model = lora(case, layer).eval()
    merged = copy.deepcopy(case)
    merged.model = merged.model.merge_and_unload()
    before = logits(case)
    for each in (case, merged):
        attach(each.model, each.processor, "stc-2x2")
    torch.testing.assert_close(logits(case), logits(merged), rtol=1e-4, atol=1e-5)
    detach(case.model, case.processor)
    assert torch.equal(logits(case), before)


@pytest.mark.parametrize("name", HOSTS)
def test_trainer_saves_and_resumes(name: str, tmp_path: Path) -> None:
    """Two steps and a checkpoint, two more; loaded from the checkpoint and resumed, the same weights.

    (The model is loaded first because ``Trainer`` does not read back the weights of hosts whose files have older
    names than their modules; that is so without a compressor too.)
    """
    pytest.importorskip("accelerate")
    case = tiny_hosts.make(name)
    attach(case.model, case.processor, "stc-2x2")
    inputs = case.inputs((1,))
    inputs.pop("labels", None)
    rows = [dict(inputs) | {"labels": inputs["input_ids"]}] * 4

    def trainer(model: Any) -> Any:
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path), max_steps=4, save_steps=2, per_device_train_batch_size=1, report_to=[],
            learning_rate=1e-3, use_cpu=True, remove_unused_columns=False, disable_tqdm=True, logging_steps=100,
        )  # fmt: skip
        return transformers.Trainer(
            model=model, args=arguments, train_dataset=rows, data_collator=lambda batch: batch[0]
        )

    trainer(case.model).train()
    checkpoint = tmp_path / "checkpoint-2"
    resumed, _ = load_compressed(checkpoint, processor=tiny_hosts.make(name).processor)
    assert resumed.config.nvila_compressor == {"name": "stc", "factor": 2}
    trainer(resumed).train(resume_from_checkpoint=str(checkpoint))
    for key, value in case.model.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[key], value, rtol=1e-3, atol=1e-5, msg=key)


@pytest.mark.parametrize("name", HOSTS)
def test_gradient_checkpointing(name: str) -> None:
    case = tiny_hosts.make(name)
    attach(case.model, case.processor, "stc-2x2")
    case.model.train()
    loss(case).backward()
    grads = {key: p.grad.clone() for key, p in case.model.named_parameters() if p.grad is not None}
    case.model.zero_grad()
    case.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    loss(case).backward()
    for key, parameter in case.model.named_parameters():
        if key in grads:
            torch.testing.assert_close(parameter.grad, grads[key], msg=key)


@pytest.mark.parametrize("compressor", ["stc-2x2", "uniform-25%"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "idefics3" else pytest.mark.slow) for name in NAMES]
)
def test_compiles_where_the_host_does(name: str, compressor: str) -> None:
    case = tiny_hosts.make(name)

    def compiled() -> torch.Tensor:
        torch.compiler.reset()
        inputs = case.inputs((1,))
        inputs.pop("labels", None)
        with torch.no_grad():
            return torch.compile(case.model, fullgraph=True, backend="eager")(**inputs).logits[:, -1]

    try:
        compiled()
    except Exception as error:
        pytest.skip(f"the host alone does not: {type(error).__name__}")
    attach(case.model, case.processor, compressor)
    torch.testing.assert_close(compiled(), logits(case))


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"cache_implementation": "static"}])
@pytest.mark.parametrize("name", HOSTS)
def test_beams_and_static_caches(name: str, options: dict[str, Any]) -> None:
    """The same as without them: a static cache as a dynamic one, one beam as greedy."""
    case = tiny_hosts.make(name)
    tokenizer = case.processor.tokenizer
    settings = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    settings["suppress_tokens"] = list(range(7, len(tokenizer)))  # placeholders among them

    def generate(**more: Any) -> torch.Tensor:
        inputs = case.inputs((2, 1))
        inputs.pop("labels", None)
        with torch.no_grad():
            return case.model.generate(**inputs, **settings, **more)

    try:
        generate(**options)
    except Exception as error:
        pytest.skip(f"the host alone does not: {type(error).__name__}")
    attach(case.model, case.processor, "uniform-25%")
    found = generate(**options)
    if "num_beams" not in options:
        assert torch.equal(found, generate())
    assert found.shape == generate().shape


@pytest.mark.parametrize("name", ["llava", pytest.param("qwen2_5_vl", marks=pytest.mark.slow)])
def test_other_dtypes(name: str) -> None:
    """A host in bfloat16; a learned compressor in float32 in it."""
    case = tiny_hosts.make(name)
    case.model.bfloat16()
    learned = TokenLearner(channels=16 if name == "llava" else tiny_hosts.WIDTH, tokens=4)
    attach(case.model, case.processor, learned)
    assert logits(case).dtype == torch.bfloat16
    assert {p.dtype for p in learned.parameters()} == {torch.float32}
    loss(case).backward()
    assert all(p.grad is not None for p in learned.parameters())
    other = tiny_hosts.make(name)
    attach(other.model, other.processor, "stc-2x2")
    wanted = logits(other)
    other.model.bfloat16()
    torch.testing.assert_close(logits(other).float(), wanted, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "llava_next"])
def test_processors_are_copied_and_sent_to_workers(name: str) -> None:
    case = tiny_hosts.make(name)
    attach(case.model, case.processor, UniformChoice(0.5))
    expected = case.count(case.inputs((2,)))
    for copied in (copy.deepcopy(case.processor), pickle.loads(pickle.dumps(case.processor))):
        other = copy.copy(case)
        other.processor = copied
        assert other.count(other.inputs((2,))) == expected
    torch.testing.assert_close(logits(copy.deepcopy(case)), logits(case))


def test_truncated_prompts() -> None:
    """Text is cut to what is left for it; what would cut into a picture is refused by the host."""
    case = tiny_hosts.make("llava")
    attach(case.model, case.processor, "stc-2x2")
    case.processor.tokenizer.truncation_side = "right"
    inputs = case.inputs((1, 1), truncation=True, max_length=11)
    assert inputs["input_ids"].shape[1] == 11
    assert case.count(inputs) == [9, 9]
    with pytest.raises(ValueError, match="Mismatch in `image` token count"):
        case.inputs((1,), truncation=True, max_length=8)


def test_counted_before() -> None:
    """What a picture will cost, from its size alone."""
    for name in ("llava", "paligemma", "idefics3", "aya_vision", "gemma3", "llava_next", "mistral3", "qwen2_vl"):
        case = tiny_hosts.make(name)
        before = case.processor._get_num_multimodal_tokens([(48, 64)])["num_image_tokens"][0]
        placeholders = case.count(case.inputs())[0]
        attach(case.model, case.processor, "stc-2x2")
        after = case.processor._get_num_multimodal_tokens([(48, 64)])["num_image_tokens"][0]
        breaks = {"mistral3": 5 - 3}.get(name, 0)
        assert before - after == placeholders - case.count(case.inputs())[0] + breaks, name


def test_compressed_linear_in_a_model_of_ones_own() -> None:
    """It keeps the old layer under the old keys, and the layer inside is found by the old name."""
    model = torch.nn.Sequential(torch.nn.Linear(6, 4))
    kept = {key: value.clone() for key, value in model.state_dict().items()}
    model[0] = CompressedLinear(SpatialToChannel(2), model[0], name="0")
    state = model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in kept.items())
    assert dict(model.named_modules())["0.0"].in_features == 24
    assert sorted(key for key, _ in model.named_parameters()) == ["0.0.bias", "0.0.weight"]
    tokens = torch.randn(3, 16, 6)
    mean = tokens.view(3, 2, 2, 2, 2, 6).mean(dim=(2, 4)).view(3, 4, 6)
    torch.testing.assert_close(model(tokens), torch.nn.functional.linear(mean, kept["0.weight"], kept["0.bias"]))
