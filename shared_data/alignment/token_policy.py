"""A policy for `policy_evaluation.py`: texts in and out, around the level's `generate` and log-probabilities.

policy = TokenPolicy(model, tokenizer, generate, completion_log_probs, negative_log_probs)
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from shared_data.alignment.policy_evaluation import Completion
from shared_data.alignment.prompts import Prompt, encode_prompts
from shared_data.evaluation.windows import NegativeLogProbs, bits_per_byte, score_tokens
from shared_data.inference.prompts import stop_ids


class TokenPolicy:
    """A language model and its tokenizer, ours or one of transformers.

    generate: the level's. log_probs(model, input_ids, completion_mask, attention_mask, temperature): nats of each row's completion.
    negative_log_probs(model, input_ids, targets): -ln p of targets, for documents.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        generate: Callable[..., list[list[int]]],
        log_probs: Callable[..., Float[np.ndarray, " N"]],
        negative_log_probs: NegativeLogProbs,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.generate, self.completion_log_probs = generate, log_probs
        self.negative_log_probs = negative_log_probs

    def complete(
        self, prompts: Sequence[Prompt | str], max_completion_length: int, temperature: float, seed: int
    ) -> list[Completion]:
        """One sampled completion of each prompt."""
        prompt_ids, stops = encode_prompts(self.tokenizer, prompts), stop_ids(self.model, self.tokenizer)
        options = {"max_new_tokens": max_completion_length, "temperature": temperature, "seed": seed}
        completions = self.generate(self.model, prompt_ids, eos_token_id=stops, **options)
        texts = decode_completions(self.tokenizer, completions)
        return [
            Completion(prompt, ids, text, finished=ids[-1] in stops)
            for prompt, ids, text in zip(prompt_ids, completions, texts, strict=True)
        ]

    def log_probs(self, completions: Sequence[Completion], temperature: float) -> list[float]:
        """log p(completion | prompt) of each, in nats."""
        arrays = pad_completions([(completion.prompt_ids, completion.ids) for completion in completions])
        found = self.completion_log_probs(self.model, *arrays, temperature=temperature)
        return [float(value) for value in found]

    def bits_per_byte(self, texts: Sequence[str]) -> float:
        """Of documents, each read by itself."""
        positions, end = self.model.config.max_position_embeddings, self.tokenizer.eos_token_id
        ends = [] if end is None else [end]
        tokens = np.array([id for text in texts for id in (*self.tokenizer.encode(text), *ends)])
        stride = max(1, positions // 2)
        score = score_tokens(self.negative_log_probs, self.model, tokens, positions, stride, 2, end)
        return bits_per_byte(score, sum(len(text.encode()) for text in texts))


def decode_completions(tokenizer: Any, completions: Sequence[Sequence[int]]) -> list[str]:
    """The texts of completions, without the token that ended them and other special ones, as TRL has them."""
    return [tokenizer.decode(ids, skip_special_tokens=True) for ids in completions]


def pad_completions(
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
) -> tuple[Int64[np.ndarray, "N T"], Int64[np.ndarray, "N T"], Int64[np.ndarray, "N T"]]:
    """Input ids, completion mask and attention mask of (prompt, completion) rows; padded on the right."""
    T = max(len(prompt) + len(completion) for prompt, completion in rows)
    input_ids, completion_mask, attention_mask = np.zeros((3, len(rows), T), np.int64)
    for row, (prompt, completion) in enumerate(rows):
        text = [*prompt, *completion]
        input_ids[row, : len(text)] = text
        completion_mask[row, len(prompt) : len(text)] = 1
        attention_mask[row, : len(text)] = 1
    return input_ids, completion_mask, attention_mask
