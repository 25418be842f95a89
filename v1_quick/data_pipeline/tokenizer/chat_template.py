"""The chat template: a conversation as one text, in ChatML.

The template is a Jinja program saved in `tokenizer_config.json`; here transformers runs it. Levels 2 and 3 write the same text
by hand.

    python -c "from v1_quick.data_pipeline.tokenizer.chat_template import render_chat; print(render_chat([{'role': 'user', 'content': 'Hi'}], True))"
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
    from transformers.utils.chat_template_utils import render_jinja_template

    for number, message in enumerate(messages, 1):
        if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
            raise UserError(
                f"message {number} of the conversation lacks a text 'role' or 'content'; write both, as in"
                ' {"role": "user", "content": "Hello"}'
            )
    texts, _ = render_jinja_template(
        [list(messages)], chat_template=CHAT_TEMPLATE, add_generation_prompt=add_generation_prompt
    )
    return texts[0]
