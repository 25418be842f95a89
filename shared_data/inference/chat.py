"""Conversations: the chat template around a level's `generate`, and the loop of the command `chat`.

A completion is what the model writes after the template's generation prompt, up to the token that ends a turn. The whole conversation
so far is the prompt of the next one; when it outgrows the model's positions, the oldest turns are forgotten.

`generate` is a level's function; its arguments are explained in level 2's.

    (answer,) = complete_chat(generate, model, tokenizer, [[{"role": "user", "content": "Hello"}]], max_new_tokens=64)
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from shared_data.corpus.formatting import Message
from shared_data.errors import UserError
from shared_data.inference.notes import say_cut_off
from shared_data.inference.prompts import encode_chat, stop_ids
from shared_data.inference.stop_strings import text_before_stop
from shared_data.inference.streaming import TextStream
from shared_data.settings import GenerateSettings

Generate = Callable[..., list[list[int]]]


def complete_chat(
    generate: Generate,
    model: Any,
    tokenizer: Any,
    conversations: Sequence[Sequence[Message]],
    on_text: Callable[[str], None] | None = None,
    on_cut_off: Callable[[], None] | None = None,
    *,
    max_new_tokens: int,
    stop_strings: Sequence[str] = (),
    **options: Any,
) -> list[str]:
    """The assistant's next turn in each conversation, up to a stop string; `options` are those of `generate`.

    `on_text` receives the text of the first completion piece by piece; `on_cut_off` is called where `max_new_tokens` ended it.
    """
    ends = stop_ids(model, tokenizer)
    stream = TextStream(tokenizer, stop_strings)
    options |= {"max_new_tokens": max_new_tokens, "stop_strings": stop_strings, "tokenizer": tokenizer}

    def write(row: int, id: int) -> None:
        if on_text is not None and row == 0:
            on_text(stream.add(id))

    prompts = [encode_chat(tokenizer, messages) for messages in conversations]
    new_ids = generate(model, prompts, eos_token_id=ends, on_token=write, **options)
    if on_text is not None:
        on_text(stream.finish())
    texts = [tokenizer.decode([id for id in ids if id not in ends]) for ids in new_ids]
    answers = [text_before_stop(text, stop_strings) for text in texts]
    ended = new_ids[0][-1] in ends or answers[0] != texts[0]
    if on_cut_off is not None and len(new_ids[0]) == max_new_tokens and not ended:
        on_cut_off()
    return answers


def chat(
    generate: Generate,
    model: Any,
    tokenizer: Any,
    section: GenerateSettings,
    user_messages: Iterable[str],
    write: Callable[[str], None],
) -> None:
    """Read the user's messages and write the completions as they come; obey `/reset`, `/system TEXT` and `/quit`.

    `user_messages` ends where the user does. A message that does not fit is refused, and the conversation goes on.
    """
    options = section.model_dump(exclude={"prompts", "seed"})
    messages: list[Message] = []
    for number, typed in enumerate(user_messages):
        text = typed.strip()
        if text in ("/quit", "/exit"):
            return
        if text.startswith("/"):
            messages = _obey(text, messages, write)
        elif text:
            whole: list[Message] = [*messages, {"role": "user", "content": text}]
            try:
                fitting = forget_oldest(tokenizer, whole, model.config.max_position_embeddings)
            except UserError as error:
                write(f"[{error}]\n")
                continue
            if len(fitting) < len(whole):
                write("[the oldest turns no longer fit into the model's positions and are forgotten]\n")
            answer = _answer(generate, model, tokenizer, fitting, write, options, section.seed + number)
            messages = (
                [*fitting, {"role": "assistant", "content": answer}] if answer is not None else messages
            )


def _obey(command: str, messages: list[Message], write: Callable[[str], None]) -> list[Message]:
    """The conversation after a command."""
    name, *content = command.split(maxsplit=1)
    if name == "/reset":
        write("[the conversation begins anew]\n")
        return [message for message in messages if message["role"] == "system"]
    if name == "/system":
        write("[the system message is set, the conversation begins anew]\n")
        return [{"role": "system", "content": text} for text in content]
    write(f"[no command {name}; there are /reset, /system TEXT and /quit]\n")
    return messages


def _answer(
    generate: Generate,
    model: Any,
    tokenizer: Any,
    messages: Sequence[Message],
    write: Callable[[str], None],
    options: dict[str, Any],
    seed: int,
) -> str | None:
    """Write the assistant's next turn, or its beginning where Ctrl-C stops it; None where it had not begun."""
    pieces: list[str] = []
    cut_off: list[bool] = []

    def on_text(piece: str) -> None:
        pieces.append(piece)  # first: Ctrl-C may come while it is written
        write(piece)

    try:
        (answer,) = complete_chat(
            generate,
            model,
            tokenizer,
            [messages],
            on_text,
            lambda: cut_off.append(True),
            seed=seed,
            **options,
        )
    except KeyboardInterrupt:
        if not sys.stdin.isatty():  # a script is stopped as a whole
            raise
        write("\n[stopped]\n")
        return "".join(pieces) or None
    write("\n")
    if cut_off:
        say_cut_off(options["max_new_tokens"])
    return answer


def forget_oldest(tokenizer: Any, messages: list[Message], positions: int) -> list[Message]:
    """The conversation without its oldest turns, so that a quarter of the model's positions is free for the completion.

    The system message and the last turn stay. Raises `UserError` where these alone leave no room.
    """
    system = [message for message in messages[:1] if message["role"] == "system"]
    turns = messages[len(system) :]
    while len(encode_chat(tokenizer, [*system, *turns])) > positions * 3 // 4 and len(turns) > 1:
        turns = turns[2:] if len(turns) > 2 else turns[-1:]
    tokens = len(encode_chat(tokenizer, [*system, *turns]))
    if tokens >= positions:
        subject = "the message and the system message have" if system else "the message has"
        raise UserError(
            f"{subject} {tokens:,} tokens with the chat template, and at most {positions - 1:,} fit into this model; shorten it"
        )
    return [*system, *turns]
