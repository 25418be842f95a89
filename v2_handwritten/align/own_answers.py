"""The tuned model's own answers, for the reward model to compare replies with (Zheng et al. 2023, reference-guided grading).

To judge an answer, one must know the right one. A reward model learns from its pairs how to judge long before it learns to find answers,
which the tuned model that it starts from can do, but only as a speaker. So this model is asked first, and what it says is shown to the
judge, one line below the question; whether two sentences say the same is soon learned. Theory: own_answers.md.

The same at all levels.

    shown = with_own_answers(tuned, tokenizer, [[{"role": "user", "content": "What colour is the kite?"}]], 24)
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

from shared_data.corpus.formatting import Message
from shared_data.errors import UserError
from shared_data.inference.prompts import encode_chat, stop_ids
from shared_data.progress import progress
from shared_data.settings import Settings
from v2_handwritten.data_pipeline.tokenizer.tokenizer import Tokenizer
from v2_handwritten.inference.generate import generate
from v2_handwritten.models.transformer import Transformer

BATCH_SIZE = 64  # conversations that are answered at a time
_MANY = 1000  # so many take long enough to be watched

Answered = Callable[
    [Sequence[Sequence[Message]]], list[list[Message]]
]  # conversations -> the same, with answers


def answers_for(settings: Settings, model: Transformer, tokenizer: Tokenizer) -> Answered | None:
    """What shows the reward model of these settings the answers of the tuned model; `None` if it judges without them."""
    tokens = settings.reward.own_answer_tokens
    return partial(with_own_answers, model, tokenizer, max_new_tokens=tokens) if tokens else None


def with_own_answers(
    model: Transformer,
    tokenizer: Tokenizer,
    conversations: Sequence[Sequence[Message]],
    max_new_tokens: int,
) -> list[list[Message]]:
    """Conversations whose last turn, if it is a question, goes on with a line that holds the model's greedy answer to it.

    A question ends with a question mark. A turn stays as it is if the answer does not end within `max_new_tokens`, as a story does not,
    or if there is no room for so many. Raises `UserError` where these alone fill the model's positions.
    """
    positions = model.config.max_position_embeddings
    room = positions - max_new_tokens
    if room < 1:
        raise UserError(
            f"own answers of up to {max_new_tokens} tokens leave no question a place in the model's {positions} positions; "
            "lower reward.own_answer_tokens"
        )
    prompts = {
        number: ids
        for number, messages in enumerate(conversations)
        if _is_question(messages) and len(ids := encode_chat(tokenizer, messages)) <= room
    }
    order = sorted(prompts, key=lambda number: len(prompts[number]))  # a batch then needs little padding
    batches = [order[start : start + BATCH_SIZE] for start in range(0, len(order), BATCH_SIZE)]
    shown = [list(messages) for messages in conversations]

    watched = progress(len(order), "own answers", unit="questions") if len(order) >= _MANY else nullcontext()
    with watched as bar:
        for batch in batches:
            asked = [prompts[number] for number in batch]
            replies = generate(model, asked, max_new_tokens=max_new_tokens, eos_token_id=stop_ids(tokenizer))
            for number, ids in zip(batch, replies, strict=True):
                *earlier, question = shown[number]
                if text := _finished(tokenizer, ids):
                    shown[number] = [*earlier, {**question, "content": f"{question['content']}\n{text}"}]
            if bar is not None:
                bar.update(len(batch))
    return shown


def _is_question(messages: Sequence[Message]) -> bool:
    return bool(messages) and messages[-1]["content"].rstrip().endswith("?")


def _finished(tokenizer: Tokenizer, ids: list[int]) -> str:
    """The text of a reply that came to its end; empty for any other, and for one with tokens that only the template may write."""
    *said, end = ids
    if end not in stop_ids(tokenizer) or not set(said).isdisjoint(tokenizer.special_tokens.values()):
        return ""
    return tokenizer.decode(said).strip()
