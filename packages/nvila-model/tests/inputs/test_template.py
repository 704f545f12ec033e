"""Chat templates: Qwen2's text, what published templates use, and what a hostile one may not do."""

import pytest
from nvila_model.inputs.template import QWEN2, ChatTemplate, TemplateError
from nvila_model.inputs.tokenizer import Tokenizer
from transformers import AutoTokenizer

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello!"}
SYSTEM = {"role": "system", "content": "Be terse."}


@pytest.mark.parametrize("source", [None, "qwen2", QWEN2])
def test_qwen2_has_a_system_prompt_without_a_period(source: str | None) -> None:
    assert ChatTemplate(source).render([USER], add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    "messages", [[USER], [USER, ANSWER, USER], [SYSTEM, USER, ANSWER], [{**SYSTEM, "content": ""}, USER]]
)
@pytest.mark.parametrize("add_generation_prompt", [False, True])
def test_renders_as_transformers_does(
    tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory, messages: list, add_generation_prompt: bool
) -> None:
    folder = tmp_path_factory.mktemp("peer")
    tokenizer.save(folder)
    peer = AutoTokenizer.from_pretrained(folder)
    expected = peer.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, tokenize=False)
    assert tokenizer.template.render(messages, add_generation_prompt=add_generation_prompt) == expected


def test_a_message_without_content_is_passed_over() -> None:
    empty = {"role": "assistant", "content": None}
    assert ChatTemplate().render([USER, empty]) == ChatTemplate().render([USER])


def test_the_end_of_a_turn_is_what_follows_an_answer() -> None:
    assert ChatTemplate().end_of_turn.startswith("<|im_end|>\n")


def test_published_templates_find_what_they_use() -> None:
    source = (
        "{%- for message in messages %}\n"
        "    {%- if loop.index > 2 %}{% break %}{% endif %}\n"
        "    {%- if message.role == 'assistant' %}{% generation %}{{ message.content }}{% endgeneration %}\n"
        "    {%- else %}{{ bos_token + (message | tojson) }}{% endif %}\n"
        "{%- endfor %}{{ strftime_now('%%') }}"
    )
    text = ChatTemplate(source, variables={"bos_token": "[BOS]"}).render([USER, ANSWER, USER])
    assert text == '[BOS]{"role": "user", "content": "Hi"}Hello!%'


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% if %}", "the chat template is not valid jinja"),
        ("{{ raise_exception('roles must alternate') }}", "refused the conversation: roles must alternate"),
        ("{{ messages[0]['content'] + 1 }}", "refused the conversation"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "refused the conversation: .*unsafe"),
        ("{{ messages.append(1) }}", "refused the conversation: .*(unsafe|not safely callable)"),
    ],
)
def test_a_bad_template_is_refused(source: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        ChatTemplate(source).render([USER])


def test_an_empty_conversation_is_refused() -> None:
    with pytest.raises(TemplateError, match="0 messages"):
        ChatTemplate().render([])
