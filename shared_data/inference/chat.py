"""Conversations: the chat template around a level's `generate`, and the loop of the command `chat`.

A completion is what the model writes after the template's `<|im_start|>assistant`, up to `<|im_end|>`. The whole conversation
so far is the prompt of the next one; when it outgrows the model's positions, the oldest turns are forgotten.

`generate` is a level's function: `generate(model, prompts, *, max_new_tokens, temperature, top_k, top_p, seed, eos_token_id, on_token)`.

    (answer,) = complete_chat(generate, model, tokenizer, [[{"role": "user", "content": "Hello"}]], max_new_tokens=64)
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from shared_data.corpus.formatting import Message
from shared_data.errors import UserError
from shared_data.inference.arguments import end_ids
from shared_data.inference.prompts import encode_chat, stop_ids
from shared_data.inference.streaming import TextStream
from shared_data.settings import GenerateSettings

Generate = Callable[..., list[list[int]]]


def complete_chat(
    generate: Generate,
    model: Any,
    tokenizer: Any,
    conversations: Sequence[Sequence[Message]],
    on_text: Callable[[str], None] | None = None,
    **options: Any,
) -> list[str]:
    """The assistant's next turn in each conversation; `options` are those of `generate`.

    `on_text` receives the text of the first completion piece by piece.
    """
    ends = {*stop_ids(tokenizer), *end_ids(model.config.eos_token_id)}
    stream = TextStream(tokenizer)

    def write(row: int, id: int) -> None:
        if on_text is not None and row == 0:
            on_text(stream.add(id))

    prompts = [encode_chat(tokenizer, messages) for messages in conversations]
    new_ids = generate(model, prompts, eos_token_id=sorted(ends), on_token=write, **options)
    if on_text is not None:
        on_text(stream.finish())
    return [tokenizer.decode([id for id in ids if id not in ends]) for ids in new_ids]


def chat(
    generate: Generate,
    model: Any,
    tokenizer: Any,
    section: GenerateSettings,
    lines: Iterable[str],
    write: Callable[[str], None],
) -> None:
    """Read the user's lines and write the completions as they come; obey `/reset`, `/system TEXT` and `/quit`.

    `lines` ends where the user does.
    """
    options = section.model_dump(include={"max_new_tokens", "temperature", "top_k", "top_p"})
    messages: list[Message] = []
    for number, line in enumerate(lines):
        text = line.strip()
        if text == "/quit":
            return
        if text == "/reset":
            messages = [message for message in messages if message["role"] == "system"]
            write("[the conversation begins anew]\n")
        elif text.startswith("/system"):
            content = text.removeprefix("/system").strip()
            messages = [{"role": "system", "content": content}] if content else []
            write("[the system message is set, the conversation begins anew]\n")
        elif text.startswith("/"):
            write(f"[no command {text.split()[0]}; there are /reset, /system TEXT and /quit]\n")
        elif text:
            messages.append({"role": "user", "content": text})
            messages = forget_oldest(tokenizer, messages, model.config.max_position_embeddings)
            (answer,) = complete_chat(
                generate, model, tokenizer, [messages], write, seed=section.seed + number, **options
            )
            write("\n")
            messages.append({"role": "assistant", "content": answer})


def forget_oldest(tokenizer: Any, messages: list[Message], positions: int) -> list[Message]:
    """The conversation without its oldest turns, so that a quarter of the model's positions is free for the completion.

    The system message and the last turn stay. Raises `UserError` where these alone leave no room.
    """
    system = [message for message in messages[:1] if message["role"] == "system"]
    turns = messages[len(system) :]
    while len(encode_chat(tokenizer, [*system, *turns])) > positions * 3 // 4 and len(turns) > 1:
        turns = turns[2:] if len(turns) > 2 else turns[-1:]
    if len(encode_chat(tokenizer, [*system, *turns])) >= positions:
        raise UserError(f"the message fills all {positions} positions of the model; shorten it")
    return [*system, *turns]
