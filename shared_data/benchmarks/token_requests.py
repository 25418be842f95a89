"""Requests as token ids: where the context ends and the continuation begins, as lm-evaluation-harness decides it.

    context "Answer:"    continuation " yes"    →    ids of "Answer: yes", cut where the ids of "Answer:" end

The two are encoded *together*: encoded apart, a tokenizer may write the space and the word as two tokens where it has seen one in training,
and the score is that of a text which no text looks like. Theory: v2_handwritten/evaluation/benchmarks/harness.md.

    encode_request(tokenizer, Request("Answer:", " yes"))
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from shared_data.benchmarks.items import Request
from shared_data.errors import UserError
from shared_data.tokenizer.tokenizer_config import token_text


class TokenRequest(NamedTuple):
    """How probable are these ids after those?"""

    context: list[int]
    continuation: list[int]


def prefix_token_id(tokenizer: Any) -> int:
    """What stands before a text that nothing stands before: `bos_token`, else `eos_token`."""
    name = token_text(tokenizer.config.get("bos_token"))
    first = None if name is None else tokenizer.token_to_id(name)
    if first is not None:
        return first
    return tokenizer.end_of_text_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text with what its tokenizer puts around each (a BOS of Llama's); not twice where the text begins with it."""
    begins = text.startswith(tokenizer.decode([prefix_token_id(tokenizer)]))
    return tokenizer.encode(text, add_special_tokens=not begins)


def encode_request(tokenizer: Any, request: Request) -> TokenRequest:
    """Context and continuation, encoded together. Spaces that end the context belong to the first word of the continuation."""
    context, continuation = request
    if not context:
        ids, first = tokenizer.encode(continuation), prefix_token_id(tokenizer)
        begins = bool(ids) and ids[0] == first
        return _checked(ids[:1] if begins else [first], ids[1:] if begins else ids, request)
    kept = context.rstrip()
    whole = encode_text(tokenizer, context + continuation)
    context_ids = encode_text(tokenizer, kept)
    return _checked(context_ids, whole[len(context_ids) :], request)


def _checked(context: list[int], continuation: list[int], request: Request) -> TokenRequest:
    if not context or not continuation:
        raise UserError(
            f"the choice {request.continuation!r:.60} has no token of its own after its question; leave the item out"
        )
    return TokenRequest(context, continuation)


def rolling_requests(tokenizer: Any, text: str, max_length: int) -> Iterator[TokenRequest]:
    """A whole text in windows of at most `max_length` inputs: each token is predicted once, and the last window has full context."""
    ids = encode_text(tokenizer, text)
    begins = [prefix_token_id(tokenizer), *ids]
    for begin in range(0, len(ids), max_length):
        end = min(begin + max_length, len(ids))
        first = 0 if begin == 0 else end - max_length  # of the inputs; the last window reaches back
        yield TokenRequest(begins[first : begin + 1], ids[begin:end])


def truncated(request: TokenRequest, max_length: int) -> list[int]:
    """The inputs of one forward pass: all ids but the last, of a longer request the last `max_length`."""
    return [*request.context, *request.continuation][-(max_length + 1) :][:-1]


def truncated_left(ids: Sequence[int], max_length: int, max_new_tokens: int, name: str) -> list[int]:
    """A prompt that leaves room for the text to come; what is cut off is its beginning."""
    room = max_length - max_new_tokens
    if room < 1:
        raise UserError(
            f"{name} writes up to {max_new_tokens} tokens, and the model has {max_length} positions; use a model with more, or another benchmark"
        )
    return list(ids[-room:])
