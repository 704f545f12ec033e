"""Every host with a compressor: counted, placed, generated with, saved, loaded, taken out again."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nvila_compress import SpatialToChannel, TokenLearner, UniformChoice
from nvila_compress.adapters import attach, detach, load_compressed, supported_models

transformers = pytest.importorskip("transformers")
import tiny_hosts  # noqa: E402
from tiny_hosts import Case  # noqa: E402

# transformers' own processors hand tensors to numpy the old way
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

_MADE: dict[str, Case] = {}


@pytest.fixture(params=list(tiny_hosts.HOSTS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def fresh(name: str) -> Case:
    if name not in _MADE:
        _MADE[name] = tiny_hosts.make(name)
    return _MADE[name]


@pytest.fixture
def case(fresh: Case) -> Case:
    """A copy, since attaching changes model and processor."""
    return copy.deepcopy(fresh)


def run(case: Case, inputs: Any, **options: Any) -> torch.Tensor:
    """The last logits of a prompt."""
    inputs.pop("labels", None)
    with torch.no_grad():
        return case.model(**inputs, logits_to_keep=1, **options).logits[:, -1]


def generate(case: Case, inputs: Any, **options: Any) -> torch.Tensor:
    inputs.pop("labels", None)
    length = inputs["input_ids"].shape[1]
    with torch.no_grad():
        out = case.model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False, **options)
    return out[:, length:]


def test_every_family_is_tested() -> None:
    assert set(tiny_hosts.HOSTS) - {"llava_pixtral"} == set(supported_models())


def test_counts_follow_and_generate_works(case: Case, fresh: Case) -> None:
    """One picture, several, a batch with padding: a quarter of the tokens, and the host's own check agrees."""
    counts = ((1,), (2, 1))
    before = [fresh.count(fresh.inputs(count)) for count in counts]
    attached = attach(case.model, case.processor, "stc-2x2")
    inputs = case.inputs((2, 1))
    expected = [[folded(fresh, *each) for each in zip(*pair, strict=True)] for pair in zip(before, counts, strict=True)]
    assert [case.count(case.inputs()), case.count(inputs)] == expected
    assert generate(case, inputs).shape == (2, 3)
    if fresh.tile is not None:
        assert (attached.tokens_before, attached.tokens_after) == (fresh.tile, fresh.tile // 4)


def folded(case: Case, tokens: int, pictures: int) -> int:
    """Tokens of a prompt after 2 x 2 folding."""
    one = tokens // pictures
    return pictures * case.folded.get(one, one // 4)


VIDEOS = {  # tokens of four frames before and after 2 x 2 folding, by hand
    "video_llava": (4 * (1 + 36), 4 * (1 + 9)),
    "smolvlm": (4 * 36, 4 * 9),
    "internvl": (4 * 36, 4 * 9),
    "llava_onevision": (4 * 9 + 1, 4 * 4 + 1),
    "llava_next_video": (4 * 9, 4 * 4),
    "qwen2_vl": (2 * 36, 2 * 9),
    "qwen2_5_vl": (2 * 36, 2 * 9),
    "qwen3_vl": (2 * 9, 2 * 4),
}


@pytest.mark.parametrize("name", list(VIDEOS), indirect=True)
def test_videos(case: Case, fresh: Case, name: str) -> None:
    attach(case.model, case.processor, "stc-2x2")
    assert (video_tokens(fresh, fresh.video_inputs()), video_tokens(case, case.video_inputs())) == VIDEOS[name]
    assert generate(case, case.video_inputs()).shape == (1, 3)


def video_tokens(case: Case, inputs: Any) -> int:
    """Placeholders of videos, which some hosts write as pictures."""
    video = case.processor.tokenizer.convert_tokens_to_ids(case.processor.video_token)
    return int(((inputs["input_ids"] == video) | (inputs["input_ids"] == case.token_id)).sum())


def test_a_chooser_keeps_the_hosts_own_tokens(case: Case, fresh: Case) -> None:
    """Evenly spaced tokens of each tile, exactly as the host made them."""
    inputs = fresh.inputs((2,))
    attach(case.model, case.processor, UniformChoice(0.25))
    kept, all_ = image_embeddings(case, case.inputs((2,))), image_embeddings(fresh, inputs)
    assert len(all_) / 5 < len(kept) < len(all_) / 3
    matches = (kept[:, None] == all_[None]).all(dim=-1)
    assert matches.any(dim=1).all(), "what is kept is what the host made"
    places = matches.int().argmax(dim=1)[matches.sum(dim=1) == 1]  # but for newlines, which are all alike
    assert (places.diff() > 0).all(), "in reading order"


def image_embeddings(case: Case, inputs: Any) -> torch.Tensor:
    """What stands at the placeholders when the language model reads them."""
    seen: list[torch.Tensor] = []
    inputs.pop("labels", None)

    def look(module: Any, args: Any, kwargs: Any) -> None:
        seen.append(kwargs["inputs_embeds"])

    decoder = case.model.get_decoder()
    hook = decoder.register_forward_pre_hook(look, with_kwargs=True)
    with torch.no_grad():
        case.model(**inputs)
    hook.remove()
    return seen[0][inputs["input_ids"] == case.token_id]


def test_budget_may_change_after_attaching(case: Case) -> None:
    compressor = UniformChoice(0.25)
    attach(case.model, case.processor, compressor)
    quarter = case.count(case.inputs())[0]
    compressor.keep = 0.5
    inputs = case.inputs()
    assert abs(case.count(inputs)[0] - 2 * quarter) <= 1  # a map's newline is no token of it
    assert generate(case, inputs).shape == (1, 3)


def test_saved_and_loaded(case: Case, fresh: Case, tmp_path: Path) -> None:
    """By ``load_compressed``, by ``attach`` on the host loaded alone; and that host alone is the one before."""
    attach(case.model, case.processor, "stc-2x2")
    train_a_little(case)
    case.model.save_pretrained(tmp_path)
    case.processor.save_pretrained(tmp_path)
    description = {"name": "stc", "factor": 2}
    assert json.loads((tmp_path / "compressor.json").read_text()) == description
    expected = run(case, case.inputs((2,)))
    model, processor = load_compressed(tmp_path, dtype=case.model.dtype)
    same(run(again(case, model, processor), case.inputs((2,))), expected)
    assert model.config.nvila_compressor == description

    host = type(case.model).from_pretrained(tmp_path, dtype=case.model.dtype)
    stock = type(fresh.processor).from_pretrained(tmp_path)
    alone = again(fresh, host, stock)
    same(run(alone, alone.inputs((2,))), run(fresh, fresh.inputs((2,))))
    attach(host, stock, SpatialToChannel(2))
    same(run(alone, alone.inputs((2,))), expected)


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """But for the last bit: weights read from a file lie otherwise in memory."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def again(case: Case, model: Any, processor: Any) -> Case:
    other = copy.copy(case)
    other.model, other.processor = model.eval(), processor
    return other


def train_a_little(case: Case) -> None:
    """Change what is new, and nothing else."""
    for key, parameter in case.model.named_parameters():
        if "token_compressor" in key or ".linear_1.linear_1" in key or ".proj.proj" in key or ".linear.linear" in key:
            parameter.data += 0.01 * torch.ones_like(parameter)


def test_detached_bit_for_bit(case: Case, fresh: Case) -> None:
    for compressor in ("stc-2x2", "uniform-25%"):
        attach(case.model, case.processor, compressor)
        train_a_little(case)
        detach(case.model, case.processor)
        state, was = case.model.state_dict(), fresh.model.state_dict()
        assert list(state) == list(was)
        assert all(torch.equal(state[key], was[key]) for key in was)
        assert torch.equal(run(case, case.inputs((2,))), run(fresh, fresh.inputs((2,))))
        assert case.model.config.to_dict() == fresh.model.config.to_dict()
        assert type(case.processor) is type(fresh.processor)
        assert case.processor.to_dict() == fresh.processor.to_dict()


def test_gradients_reach_a_learned_compressor(case: Case) -> None:
    width = tiny_hosts.WIDTH if case.tile is None else WIDTHS.get(case.model.config.model_type, tiny_hosts.WIDTH)
    learned = TokenLearner(channels=width, tokens=4)
    attach(case.model, case.processor, learned)
    inputs = case.inputs((2,))
    inputs.pop("labels", None)
    case.model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learned.parameters())


WIDTHS = {
    "llava": 16,
    "vipllava": 32,
    "video_llava": 16,
    "paligemma": 16,
    "idefics3": 64,
    "smolvlm": 64,
    "internvl": 64,
    "aya_vision": 64,
}
"""What the first linear layer reads, where a fold goes in front of it."""
