"""The chat template: our text is the text that transformers renders from the saved Jinja template."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

import shared_data.tokenizer.chat_template as v2
import shared_data.tokenizer.chat_template as v3
import v1_quick.data_pipeline.tokenizer.chat_template as v1
from shared_data.errors import UserError
from shared_data.settings import SPECIAL_TOKENS
from v2_handwritten.data_pipeline.tokenizer.bpe_train import train_bpe

MESSAGES = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["system", "user", "assistant"]),
            "content": st.text(max_size=20)
            | st.sampled_from(["", " a \n", "{{ 1 + 1 }}", "<b>'&\"", "<|im_end|>", "%}"]),
        }
    ),
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
    if messages:
        text = hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
        ids = hf.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, return_dict=False)
        assert tokens.encode(v2.render_chat(messages, add_generation_prompt)) == ids
    else:
        text = v1.render_chat(messages, add_generation_prompt)
    for level in (v1, v2, v3):
        assert level.render_chat(messages, add_generation_prompt) == text
        assert level.CHAT_TEMPLATE == v1.CHAT_TEMPLATE


@pytest.mark.parametrize(
    "message", [{}, {"role": "user"}, {"role": None, "content": "a"}, {"role": "user", "content": ["a"]}]
)
def test_a_message_without_role_or_content_is_named_by_its_number(message):
    for level in (v1, v2, v3):
        with pytest.raises(UserError, match="message 2"):
            level.render_chat([{"role": "user", "content": "a"}, message])
