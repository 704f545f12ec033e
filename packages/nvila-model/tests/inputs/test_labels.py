"""Labels cover the answers exactly by default, and slip where the reference's do under parity."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nvila_model.inputs.labels import IGNORE, label_answers, match_greedily
from nvila_model.inputs.template import TemplateError
from nvila_model.inputs.tokenizer import Tokenizer

WORDS = st.lists(
    st.sampled_from(["hello", "user", "assistant", "\n", " ", "it", "\n\n", "é", "1", "system", "<|im_start|>"]),
    max_size=6,
).map("".join)


@pytest.fixture
def shouting(tokenizer_folder: Path) -> Tokenizer:
    source = "{% for m in messages %}{{ m['content'] | upper }}<|im_end|>{% endfor %}"
    return Tokenizer.from_folder(tokenizer_folder, chat_template=source)


def conversation(*texts: str) -> list[dict[str, str | None]]:
    roles = ("user", "assistant")
    return [{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)]


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(WORDS, min_size=1, max_size=5))
def test_what_is_learnt_is_every_answer_and_its_end(tokenizer: Tokenizer, texts: list[str]) -> None:
    messages = conversation(*texts)
    labelled = label_answers(tokenizer, messages)
    assert labelled.text == tokenizer.template.render(
        [{**m, "content": (m["content"] or "").strip()} for m in messages]
    )
    assert list(labelled.input_ids) == tokenizer.encode(labelled.text)
    learnt = [token for token in labelled.labels if token != IGNORE]
    expected = [[*tokenizer.encode(answer.strip()), tokenizer.eos_id] for answer in texts[1::2]]
    assert learnt == [token for answer in expected for token in answer]
    assert all(label in (IGNORE, token) for token, label in zip(labelled.input_ids, labelled.labels, strict=True))


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(WORDS.map(lambda text: text.replace("\n", "")), min_size=2, max_size=4))
def test_without_newlines_the_reference_agrees(tokenizer: Tokenizer, texts: list[str]) -> None:
    messages = conversation(*texts)
    greedy = match_greedily(tokenizer, messages)
    assert greedy.input_ids == label_answers(tokenizer, messages).input_ids
    if "<|im_start|>" not in "".join(texts):
        assert greedy.labels == label_answers(tokenizer, messages).labels


def test_the_reference_swaps_the_newline_of_an_answer_for_the_one_after_it(tokenizer: Tokenizer) -> None:
    messages = conversation("hello", "one\ntwo\nthree")
    right, slipped = label_answers(tokenizer, messages), match_greedily(tokenizer, messages)
    differ = [place for place, pair in enumerate(zip(right.labels, slipped.labels, strict=True)) if pair[0] != pair[1]]
    newline = tokenizer.newline_ids[0]
    assert [right.labels[place] for place in differ] == [newline, IGNORE]
    assert [slipped.labels[place] for place in differ] == [IGNORE, newline]
    assert differ[1] == len(right.labels) - 1


def test_the_reference_tries_again_where_a_blank_joins_the_answer(tokenizer_folder: Path) -> None:
    source = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}<|im_end|>{% endfor %}"
    tokenizer = Tokenizer.from_folder(tokenizer_folder, chat_template=source)
    greedy = match_greedily(tokenizer, conversation("hello", "wor"))
    learnt = [token for token in greedy.labels if token != IGNORE]
    assert tokenizer.decode(learnt) == " wor<|im_end|>"


def test_where_the_reference_gives_up_nothing_is_learnt(shouting: Tokenizer) -> None:
    greedy = match_greedily(shouting, conversation("hello", "it"))
    assert set(greedy.labels) == {IGNORE}
    assert list(greedy.input_ids) == shouting.encode("HELLO<|im_end|>IT<|im_end|>")


def test_a_message_without_content_is_passed_over(tokenizer: Tokenizer) -> None:
    messages = [*conversation("hello"), {"role": "assistant", "content": None}]
    assert label_answers(tokenizer, messages) == label_answers(tokenizer, conversation("hello"))
    assert match_greedily(tokenizer, messages).labels == label_answers(tokenizer, messages).labels


def test_a_template_that_rewrites_answers_is_refused(shouting: Tokenizer) -> None:
    with pytest.raises(TemplateError, match="rewrites answers"):
        label_answers(shouting, conversation("hello", "it"))


def test_typed_control_tokens_are_learnt_as_text(tokenizer: Tokenizer) -> None:
    typed = "x<|im_end|>\n<|im_start|>user"
    marked = tokenizer.as_text(typed)
    labelled = label_answers(tokenizer, conversation(marked, marked))
    plain = label_answers(tokenizer, conversation("x", "x"))
    for token in (tokenizer.eos_id, tokenizer.token_to_id("<|im_start|>")):
        assert labelled.input_ids.count(token) == plain.input_ids.count(token)
        assert labelled.labels.count(token) == plain.labels.count(token)
    assert typed in labelled.text
    assert typed in tokenizer.decode([token for token in labelled.labels if token != IGNORE])
    assert match_greedily(tokenizer, conversation(marked, marked)).input_ids == labelled.input_ids
