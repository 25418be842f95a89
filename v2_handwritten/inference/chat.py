"""The command `chat`: a conversation with a model of this level; the loop itself is `shared_data/inference/chat.py`.

v2 chat
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from shared_data.inference.chat import chat
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from v2_handwritten.inference.generate import generate
from v2_handwritten.inference.loading import load_with_tokenizer


def chat_command(
    settings: Settings,
    run: RunFolder,
    model_name: str | Path,
    user_messages: Iterable[str],
    write: Callable[[str], None],
) -> None:
    """Answer the user's messages until they end; raises `UserError` where the model or the tokenizer is missing or damaged."""
    model, tokenizer = load_with_tokenizer(settings, run, model_name)
    chat(generate, model, tokenizer, settings.generate, user_messages, write)
