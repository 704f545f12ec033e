"""Laws of generation: batch equals loop, cached equals uncached, stream equals generate; budgets and stops."""

import pytest
import torch
from nvila_model import BudgetError, Image, Sampling, Video
from PIL import Image as PILImage

DYNAMIC = {"image_aspect_ratio": "dynamic", "dynamic_s2": False}
SINGLE = {"image_aspect_ratio": "resize", "dynamic_s2": False}
POOLED = {"video_encoder": {"_target_": "llava.model.encoders.TSPVideoEncoder", "pool_sizes": [[2, 1, 1]]}}
KINDS = [{}, DYNAMIC, SINGLE, SINGLE | POOLED]


def picture(width: int, height: int, seed: int = 0) -> Image:
    noise = torch.randint(256, (height, width, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image(PILImage.fromarray(noise.numpy()))


def clip(frames: int) -> Video:
    return Video([PILImage.new("RGB", (30, 20), (20 * index, 90, 200)) for index in range(frames)])


def asks(*parts: object) -> list[dict]:
    return [{"role": "user", "content": list(parts)}]


CONVERSATIONS = [
    asks(picture(90, 30), "What is this?"),
    asks("Just text."),
    asks("Two: ", picture(20, 70, 1), " and ", picture(50, 50, 2)),
    asks(clip(6), "What moves?"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "sampling", [Sampling(max_new_tokens=12), Sampling(max_new_tokens=12, temperature=1.2, seed=3)]
)
def test_batch_equals_loop_and_stream_equals_generate(make_model, kind: dict, sampling: Sampling):
    model = make_model(**kind)
    batch = model.generate(CONVERSATIONS, sampling)
    for conversation, answer in zip(CONVERSATIONS, batch, strict=True):
        alone = model.generate(conversation, sampling)
        assert (alone.ids, alone.text, alone.prompt_tokens) == (answer.ids, answer.text, answer.prompt_tokens)
        stream = model.stream(conversation, sampling)
        assert "".join(stream) == answer.text
        streamed = stream.answer
        assert (streamed.ids, streamed.finish, streamed.prompt_tokens) == (alone.ids, alone.finish, alone.prompt_tokens)
        assert streamed.timings.decode > 0


def test_a_stream_that_is_closed_keeps_what_was_said(make_model):
    model = make_model()
    sampling = Sampling(max_new_tokens=12)
    whole = model.generate(CONVERSATIONS[0], sampling)
    stream = model.stream(CONVERSATIONS[0], sampling)
    assert stream.answer.ids == ()
    said = next(stream) + stream.close()
    assert stream.close() == ""
    assert list(stream) == []
    assert stream.answer.text == said
    assert stream.answer.finish == "length"
    assert whole.ids[: len(stream.answer.ids)] == stream.answer.ids


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_cached_equals_uncached(make_model, kind: dict):
    model = make_model(**kind)
    for conversation in CONVERSATIONS:
        answer = model.generate(conversation, Sampling(max_new_tokens=6))
        embeds = model.embed(model.processor(conversation)).embeds
        for token in answer.ids:
            drawn = model.llm.logits(model.llm(embeds)[:, -1]).argmax(-1)
            assert int(drawn) == token
            embeds = torch.cat((embeds, model.llm.embed_tokens(drawn)[None]), dim=1)


def test_an_end_token_ends_the_answer(make_model):
    model = make_model()
    first = model.generate(CONVERSATIONS[1], Sampling(max_new_tokens=5))
    assert first.finish == "length"
    assert len(first.ids) == 5
    model.processor.tokenizer.eos_ids = (first.ids[2],)
    again = model.generate(CONVERSATIONS[1], Sampling(max_new_tokens=5))
    assert again.ids == first.ids[: first.ids.index(first.ids[2]) + 1]
    assert again.finish == "stop"


def test_a_stop_string_ends_the_answer_and_is_left_out(make_model):
    model = make_model()
    sampling = Sampling(max_new_tokens=40, temperature=2.0, seed=1)
    whole = model.generate(CONVERSATIONS[1], sampling).text
    word = whole[len(whole) // 2 : len(whole) // 2 + 2]
    cut = Sampling(max_new_tokens=40, temperature=2.0, seed=1, stop=(word,))
    answer = model.generate(CONVERSATIONS[1], cut)
    assert answer.finish == "stop"
    assert answer.text == whole[: whole.index(word)].strip()
    assert "".join(model.stream(CONVERSATIONS[1], cut)) == answer.text


def test_too_many_tokens_are_refused_before_any_compute(make_model):
    model = make_model()
    model.vision.forward = None  # would fail if it were reached
    many = asks(*[picture(90, 90, seed) for seed in range(20)], "How many?")
    with pytest.raises(BudgetError, match=r"20 images of \d+ tokens.* > 512: lower max_tiles"):
        model.generate(many)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_token_counts_are_those_of_the_embeddings(make_model, kind: dict):
    model = make_model(**kind)
    inputs = model.processor(CONVERSATIONS)
    assert inputs.token_counts(model.image_tokens, model.video_tokens) == model.embed(inputs).lengths


def test_an_open_length_fits_the_context(make_model):
    """However the tokens are drawn: 512 of a context of 512 would leave no room for a prompt."""
    model = make_model()
    drawn = Sampling(temperature=2.0, seed=0)
    answer = model.generate(CONVERSATIONS[1], drawn)
    assert answer.prompt_tokens + len(answer.ids) <= 512
    assert "".join(model.stream(CONVERSATIONS[1], drawn)) == answer.text


def test_two_prompts_are_not_one_stream(make_model):
    with pytest.raises(ValueError, match="2 prompts cannot be streamed as one"):
        list(make_model().stream(CONVERSATIONS[:2]))


def test_loss_needs_labels_and_equals_forward(make_model):
    model = make_model()
    conversation = [*CONVERSATIONS[0], {"role": "assistant", "content": "A box."}]
    inputs = model.processor.for_training([conversation, conversation[:1] + conversation[1:]])
    torch.testing.assert_close(model.loss(inputs), model(inputs).loss)
    with pytest.raises(ValueError, match="no labels"):
        model.loss(model.processor(CONVERSATIONS[0]))
