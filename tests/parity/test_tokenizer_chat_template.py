"""The chat template: our text is the text that transformers renders from the saved Jinja template."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from shared_data.errors import UserError
from shared_data.settings import SPECIAL_TOKENS
from shared_data.tokenizer.chat_template import render_chat
from v2_handwritten.data_pipeline.tokenizer.bpe_train import train_bpe

MESSAGES = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["system", "user", "assistant"]),
            "content": st.text(max_size=20)
            | st.sampled_from(["", " a \n", "{{ 1 + 1 }}", "<b>'&\"", "<|im_end|>", "%}"]),
        }
    ),
    min_size=1,
    max_size=5,
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    tokens = train_bpe(["Hello world"], 300, special_tokens=SPECIAL_TOKENS)
    folder = tmp_path_factory.mktemp("chat")
    tokens.save(folder)
    return tokens, AutoTokenizer.from_pretrained(folder)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(messages=MESSAGES, add_generation_prompt=st.booleans())
def test_every_conversation_is_rendered_as_transformers_renders_it(saved, messages, add_generation_prompt):
    tokens, hf = saved
    text = render_chat(messages, add_generation_prompt)
    assert text == hf.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=add_generation_prompt
    )
    ids = hf.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, return_dict=False)
    assert tokens.encode(text) == ids


def test_a_conversation_without_messages_is_at_most_the_opening_of_a_reply():
    """transformers renders no empty list."""
    assert render_chat([]) == ""
    assert render_chat([], add_generation_prompt=True) == "<|im_start|>assistant\n"


@pytest.mark.parametrize(
    "message", [{}, {"role": "user"}, {"role": None, "content": "a"}, {"role": "user", "content": ["a"]}]
)
def test_a_message_without_role_or_content_is_named_by_its_number(message):
    with pytest.raises(UserError, match="message 2"):
        render_chat([{"role": "user", "content": "a"}, message])
