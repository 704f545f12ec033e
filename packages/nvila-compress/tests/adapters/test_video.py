"""Compressors in time, and the positions of what is left."""

import copy
from typing import Any

import pytest
import torch
from nvila_compress import TemporalAverage, UniformChoice, build
from nvila_compress.adapters import attach

transformers = pytest.importorskip("transformers")
import tiny_hosts  # noqa: E402
from tiny_hosts import Case  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def embeddings(case: Case, inputs: Any, token: str) -> torch.Tensor:
    """What stands at ``token`` when the language model reads it."""
    return look(case, inputs)["inputs_embeds"][
        inputs["input_ids"] == case.processor.tokenizer.convert_tokens_to_ids(token)
    ]


def look(case: Case, inputs: Any) -> dict[str, torch.Tensor]:
    """What the language model was called with."""
    seen: dict[str, torch.Tensor] = {}

    def remember(module: Any, args: Any, kwargs: Any) -> None:
        seen.update({key: value for key, value in kwargs.items() if isinstance(value, torch.Tensor)})

    hook = case.model.get_decoder().register_forward_pre_hook(remember, with_kwargs=True)
    with torch.no_grad():
        case.model(**inputs)
    hook.remove()
    return seen


@pytest.mark.parametrize(
    ("name", "newlines"),
    [("video_llava", 0), ("llava_onevision", 1), ("llava_next_video", 0), ("qwen2_vl", 0), ("qwen2_5_vl", 0)],
)
def test_frames_are_averaged_in_groups(name: str, newlines: int) -> None:
    """The mean of the host's own frames; a picture in the same host is left alone."""
    case = tiny_hosts.make(name)
    fresh = copy.deepcopy(case)
    attach(case.model, case.processor, TemporalAverage(2))
    token = case.processor.video_token
    frames = 2 if "qwen" in name else 4  # Qwen's tower reads two frames as one
    whole, halved = embeddings(fresh, fresh.video_inputs(), token), embeddings(case, case.video_inputs(), token)
    tokens = whole[: len(whole) - newlines].unflatten(0, (frames // 2, 2, -1))
    expected = torch.cat([tokens.mean(1).flatten(0, 1), whole[len(whole) - newlines :]])
    torch.testing.assert_close(halved, expected)
    assert case.count(case.inputs()) == fresh.count(fresh.inputs())
    inputs = case.video_inputs()
    with torch.no_grad():
        assert (
            case.model.generate(**inputs, max_new_tokens=2, min_new_tokens=2).shape[1]
            == inputs["input_ids"].shape[1] + 2
        )


@pytest.mark.parametrize("name", ["smolvlm", "internvl", "qwen3_vl", "llava"])
def test_hosts_without_whole_videos_refuse(name: str) -> None:
    case = tiny_hosts.make(name)
    with pytest.raises(ValueError, match="TemporalAverage mixes the frames of a video, but"):
        attach(case.model, case.processor, "temporal-2")


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("kind", ["image", "video"])
def test_chosen_tokens_keep_their_positions(name: str, kind: str) -> None:
    """Token by token: the same embedding stands at the same time, row and column as in the host alone."""
    case = tiny_hosts.make(name)
    fresh = copy.deepcopy(case)
    compressor = build("random-25%")
    attach(case.model, case.processor, compressor)

    def prompt(which: Case) -> Any:
        return which.inputs((2, 1)) if kind == "image" else which.video_inputs(videos=2)

    token = case.processor.tokenizer.convert_tokens_to_ids(f"<|{kind}_pad|>")
    was, now = (table(which, prompt(which), token) for which in (fresh, case))
    assert len(now) < len(was) / 3
    assert all(position in was[embedding] for embedding, positions in now.items() for position in positions)
    text_was, text_now = (text_positions(which, prompt(which), token) for which in (fresh, case))
    assert torch.equal(text_was, text_now), "the text after an image stands where it stood"


def table(case: Case, inputs: Any, token: int) -> dict[tuple[float, ...], list[tuple[int, ...]]]:
    """The positions of each image embedding."""
    seen = look(case, inputs)
    at = inputs["input_ids"] == token
    found: dict[tuple[float, ...], list[tuple[int, ...]]] = {}
    for embedding, position in zip(seen["inputs_embeds"][at], seen["position_ids"][-3:, at].T, strict=True):
        found.setdefault(tuple(round(x, 5) for x in embedding.tolist()), []).append(tuple(position.tolist()))
    return found


def text_positions(case: Case, inputs: Any, token: int) -> torch.Tensor:
    ids = inputs["input_ids"]
    return look(case, inputs)["position_ids"][-3:, (ids != token) & (ids != case.processor.tokenizer.pad_token_id)]


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_folded_tokens_stand_at_a_corner(name: str) -> None:
    """Rows 0 and 2, columns 0, 2 and 4 of a grid of 4 x 6; what follows stands where it stood."""
    case = tiny_hosts.make(name)
    fresh = copy.deepcopy(case)
    attach(case.model, case.processor, "stc-2x2")
    inputs = case.inputs()
    at = inputs["input_ids"] == case.token_id
    t, h, w = look(case, inputs)["position_ids"][-3:, at]
    assert t.unique().numel() == 1
    assert (h - h[0]).tolist() == [0, 0, 0, 2, 2, 2]
    assert (w - w[0]).tolist() == [0, 2, 4] * 2
    assert torch.equal(
        text_positions(case, case.inputs(), case.token_id), text_positions(fresh, fresh.inputs(), case.token_id)
    )


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl"])
@pytest.mark.parametrize("beams", [1, 2])
def test_generated_as_without_a_cache(name: str, beams: int) -> None:
    """Positions go on alike in decoding; beams see the positions of their own prompt."""
    case = tiny_hosts.make(name)
    attach(case.model, case.processor, UniformChoice(0.3))
    inputs = case.inputs((2, 1))
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "num_beams": beams}
    options["suppress_tokens"] = [case.token_id, *case.processor.video_token_ids]
    with torch.no_grad():
        cached = case.model.generate(**inputs, **options)
        again = case.model.generate(**case.inputs((2, 1)), **options, use_cache=beams > 1)
    assert torch.equal(cached, again)
