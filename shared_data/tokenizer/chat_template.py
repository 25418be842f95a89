"""The chat template: a conversation as one text, in ChatML.

    <|im_start|>user
    Who has the red ball?<|im_end|>
    <|im_start|>assistant
    Mia has it.<|im_end|>

A model only ever continues text, so a conversation becomes text with special tokens where turns begin and end. The words of users
who are not to be trusted are encoded with `allow_special=False`, so that they cannot type those ids. With
`add_generation_prompt` the text ends where the assistant's answer begins.

`CHAT_TEMPLATE` is the same rule in Jinja; it is saved with the tokenizer, so `apply_chat_template` of transformers
(which is what level 1 calls), vLLM and others render conversations as the model was trained. A test holds both equal.

    uv run python -c "from shared_data.tokenizer.chat_template import render_chat; print(render_chat([{'role': 'user', 'content': 'Hi'}], True))"
"""

from collections.abc import Mapping, Sequence

from shared_data.errors import UserError

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"  # what instruction tuning trains on
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def render_chat(messages: Sequence[Mapping[str, object]], add_generation_prompt: bool = False) -> str:
    """The text of a conversation; each message has a `role` (system, user, assistant) and a `content`."""
    turns = []
    for number, message in enumerate(messages, 1):
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            raise UserError(
                f"message {number} of the conversation lacks a text 'role' or 'content'; write both, as in"
                ' {"role": "user", "content": "Hello"}'
            )
        turns.append(f"<|im_start|>{role}\n{content}<|im_end|>\n")
    if add_generation_prompt:
        turns.append("<|im_start|>assistant\n")
    return "".join(turns)
