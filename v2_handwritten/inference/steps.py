"""The logits after each new token: the prompts through the model once (prefill), then one token of each sequence a step.

The prompt passes through in chunks, so that long prompts need no more memory than short ones; after that each token is one
step of `decoder.py`. Prompts of different lengths stand right-aligned behind padding that no token sees.

Level 1 has no such file (it is inside `model.generate`); level 3 is the same in NumPy. Theory: generate.md.

    steps = CachedSteps(model, prompts, max_new_tokens=32); logits = steps.step(steps.logits.argmax(-1))
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from v2_handwritten.inference.decoder import Decoder
from v2_handwritten.inference.kv_cache import KVCache
from v2_handwritten.inference.quantized_matrices import can_decode
from v2_handwritten.models.transformer import Transformer

PREFILL_CHUNK = 512  # tokens of a prompt in one forward pass; bounds the memory of its logits and masks


class CachedSteps:
    """With a key-value cache. `logits` [B, V] are those after the prompts; `step` gives those after one more token of each."""

    def __init__(self, model: Transformer, prompts: list[list[int]], max_new_tokens: int) -> None:
        """Prefill the cache with the prompts, a repeated one once."""
        self.model = model
        weight = model.lm_head.weight
        distinct = list(dict.fromkeys(map(tuple, prompts)))
        input_ids, self.starts = pad_left(distinct, weight.device)
        B, T = input_ids.shape
        repeated = len(prompts) > B
        positions = T if repeated else T + max_new_tokens
        self.cache = KVCache(model.config, B, positions, weight.dtype, weight.device)
        self.logits = self._prefill(input_ids)
        if repeated:
            number = {prompt: row for row, prompt in enumerate(distinct)}
            rows = torch.tensor([number[tuple(prompt)] for prompt in prompts], device=weight.device)
            self.cache = self.cache.spread(rows, T + max_new_tokens)
            self.starts, self.logits = self.starts[rows], self.logits[rows]
        self.decoder: Decoder | None = None
        config = model.config
        quantized = config.quantization is not None
        self.is_decoded = can_decode(model, len(prompts)) if quantized else config.has_plain_blocks

    def _prefill(self, input_ids: Int[Tensor, "B T"]) -> Float[Tensor, "B V"]:
        T = input_ids.shape[1]
        # Dynamic frequencies depend on the length, so that the whole prompt needs the same ones.
        chunk = T if self.model.config.has_dynamic_rope else PREFILL_CHUNK
        for begin in range(0, T, chunk):
            end = min(begin + chunk, T)
            ids = input_ids[:, begin:end]
            keep = torch.zeros_like(ids, dtype=torch.bool)
            keep[:, -1] = True
            padding = _padded_inputs(self.starts, begin, end)
            last = self.model.hidden_states(ids, cache=self.cache, logits_to_keep=keep, **padding)
        return self.model.logits(last)

    def step(self, ids: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        """The logits after `ids`; the next step may overwrite them."""
        config, cache = self.model.config, self.cache
        if self.is_decoded:
            self.decoder = self.decoder or Decoder(self.model, cache, self.starts)
            return self.decoder.step(ids)
        # The ordinary forward pass of one token.
        inputs = _padded_inputs(self.starts, cache.length, cache.length + 1)
        if inputs:  # a row that has stopped goes on with the others, to positions that the model may not have
            inputs["position_ids"] = inputs["position_ids"].clamp(max=config.max_length - 1)
        return self.model(ids[:, None], cache=cache, **inputs)[:, -1]

    def reorder(self, rows: Int[Tensor, " B"]) -> None:
        """Row b goes on from what was row `rows[b]`; both of the same prompt."""
        self.cache.reorder(rows)


class RecomputedSteps:
    """The ordinary forward pass over everything, for each token again: slow, and what the cache is tested against."""

    def __init__(self, model: Transformer, prompts: list[list[int]], max_new_tokens: int) -> None:
        self.model, self.rows = model, [list(prompt) for prompt in prompts]
        self.logits = self._recompute()

    def _recompute(self) -> Float[Tensor, "B V"]:
        positions, device = self.model.config.max_length, self.model.lm_head.weight.device
        input_ids, starts = pad_left([row[:positions] for row in self.rows], device)
        return self.model(input_ids, **_padded_inputs(starts, 0, input_ids.shape[1]))[:, -1]

    def step(self, ids: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        """The logits after `ids`."""
        self.rows = [[*row, id] for row, id in zip(self.rows, ids.tolist(), strict=True)]
        return self._recompute()

    def reorder(self, rows: Int[Tensor, " B"]) -> None:
        """Row b goes on from what was row `rows[b]`."""
        self.rows = [self.rows[row] for row in rows.tolist()]


def pad_left(
    rows: Sequence[Sequence[int]], device: torch.device | str = "cpu"
) -> tuple[Int[Tensor, "B T"], Int[Tensor, " B"]]:
    """The rows right-aligned behind zeros, and how many zeros stand before each."""
    longest = max(map(len, rows))
    input_ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows], device=device)
    return input_ids, torch.tensor([longest - len(row) for row in rows], device=device)


def _padded_inputs(starts: Int[Tensor, " B"], begin: int, end: int) -> dict[str, Any]:
    """Positions that count from each row's first token, and the mask of its padding, for slots begin : end."""
    if not starts.any():
        return {}
    slots = torch.arange(end, device=starts.device)
    position_ids = (slots - starts[:, None]).clamp(min=0)
    return {"position_ids": position_ids[:, begin:], "attention_mask": slots >= starts[:, None]}
