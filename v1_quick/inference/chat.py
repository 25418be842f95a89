"""Replies in a conversation: the chat template around `generate`, and the command `chat`.

A reply is whatever the model writes after the template's `<|im_start|>assistant`, up to `<|im_end|>`. The whole conversation
so far is the prompt of the next reply; when it outgrows the model's positions, the oldest turns are forgotten.

Here `generate` is that of transformers; the words around it are the same at all levels.

    v1 chat
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from shared_data.corpus.formatting import Message
from shared_data.errors import UserError
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from v1_quick.data_pipeline.tokenizer.chat_template import render_chat
from v1_quick.data_pipeline.tokenizer.tokenizer import Tokenizer
from v1_quick.inference.generate import generate, load_for_generation
from v1_quick.inference.streaming import TextStream
from v1_quick.models.transformer import Transformer


def encode_chat(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """The ids of a conversation up to where the assistant's next reply begins."""
    return tokenizer.encode(render_chat(messages, add_generation_prompt=True), add_special_tokens=False)


def stop_ids(tokenizer: Tokenizer) -> list[int]:
    """What ends a reply: the end of the turn, or of the text."""
    end_of_turn = tokenizer.special_tokens.get("<|im_end|>")
    return [id for id in (end_of_turn, tokenizer.end_of_text_id) if id is not None]


def reply(
    model: Transformer,
    tokenizer: Tokenizer,
    conversations: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    on_text: Callable[[str], None] | None = None,
) -> list[str]:
    """The assistant's next turn in each conversation; `on_text` hears that of the first one piece by piece."""
    prompts = [encode_chat(tokenizer, messages) for messages in conversations]
    stream = TextStream(tokenizer)
    ends = stop_ids(tokenizer)

    def hear(row: int, id: int) -> None:
        if on_text is not None and row == 0 and id not in ends:
            on_text(stream.add(id))

    new_ids = generate(
        model,
        prompts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        eos_token_id=ends,
        on_token=hear,
    )
    if on_text is not None:
        on_text(stream.finish())
    return [tokenizer.decode([id for id in ids if id not in ends]) for ids in new_ids]


def chat_command(
    settings: Settings,
    run: RunFolder,
    model_name: str | Path,
    lines: Iterable[str],
    write: Callable[[str], None],
) -> None:
    """Command `chat`: read the user's lines, stream the replies; `/reset`, `/system TEXT` and `/quit` are obeyed.

    `lines` ends where the user does. Raises `UserError` where the model or the tokenizer is missing or damaged.
    """
    model, tokenizer = load_for_generation(settings, run, model_name)
    section, messages = settings.generate, list[Message]()
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
            messages = forget_oldest(model, tokenizer, messages)
            (answer,) = reply(
                model,
                tokenizer,
                [messages],
                max_new_tokens=section.max_new_tokens,
                temperature=section.temperature,
                top_k=section.top_k,
                top_p=section.top_p,
                seed=section.seed + number,
                on_text=write,
            )
            write("\n")
            messages.append({"role": "assistant", "content": answer})


def forget_oldest(model: Transformer, tokenizer: Tokenizer, messages: list[Message]) -> list[Message]:
    """The conversation without its oldest turns, so that a quarter of the model's positions is free for the reply.

    The system message and the last turn stay. Raises `UserError` where these alone leave no room.
    """
    positions = model.config.max_position_embeddings
    system = [message for message in messages[:1] if message["role"] == "system"]
    turns = messages[len(system) :]
    while len(encode_chat(tokenizer, [*system, *turns])) > positions * 3 // 4 and len(turns) > 1:
        turns = turns[2:] if len(turns) > 2 else turns[-1:]
    if len(encode_chat(tokenizer, [*system, *turns])) >= positions:
        raise UserError(f"the message fills all {positions} positions of the model; shorten it")
    return [*system, *turns]
