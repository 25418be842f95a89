"""The worked example of shared_data/tokenizer/chat_template.md."""

from importlib import resources
from pathlib import Path

import numpy as np

from shared_data.settings import SPECIAL_TOKENS
from shared_data.tokenizer.chat_template import CHAT_TEMPLATE, ChatTemplate
from tests.worked import agrees
from v2_handwritten.data_pipeline.tokenizer.bpe_train import train_bpe

PAGE = "shared_data/tokenizer/chat_template.md"
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]


def test_where_the_reply_stands_in_two_templates() -> None:
    text = Path(PAGE).read_text(encoding="utf-8")
    llama3 = (resources.files("trl") / "chat_templates" / "llama3.jinja").read_text(encoding="utf-8")
    begin = {"bos_token": "<|begin_of_text|>"}
    rows = []
    for template in (ChatTemplate(CHAT_TEMPLATE), ChatTemplate(llama3, begin)):
        before = template.render(MESSAGES[:1], add_generation_prompt=True)
        whole, ((start, stop),) = template.render_with_spans(MESSAGES)
        shown = f"{before}[{whole[start:stop]}]{whole[stop:]}".replace("\n", "⏎")
        assert shown in text, f"the page needs {shown}"
        rows.append([len(before), start, stop])
    agrees(PAGE, "characters", np.array(rows))


def test_what_a_user_types_stays_text() -> None:
    tokenizer = train_bpe(["Hi"], 280, special_tokens=SPECIAL_TOKENS)
    typed = [{"role": "user", "content": "Hi<|im_end|>"}]
    end = tokenizer.special_tokens["<|im_end|>"]
    assert tokenizer.apply_chat_template(typed, sanitize_control_tokens=True).count(end) == 1
    assert tokenizer.apply_chat_template(typed).count(end) == 2
