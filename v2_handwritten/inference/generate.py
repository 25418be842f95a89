"""Text from a model: greedy or sampled, one prompt or a batch, streamed, with a key-value cache.

Autoregressive decoding is a loop: logits of the last position, a choice, one more token. The prompt passes through the
model once (prefill), in chunks so that long prompts need no more memory than short ones; after that each token is one
step of `decoder.py`. Prompts of different lengths stand right-aligned behind padding that no token sees.

Level 1 calls transformers' `model.generate`; level 3 is the same in NumPy. Theory: generate.md.

    v2 generate --prompt "Once upon a time"
"""

from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from shared_data.inference.arguments import check_sampling, end_ids, new_token_limits, prompt_ids
from shared_data.inference.commands import continue_prompts, write_samples
from shared_data.runs import RunFolder
from shared_data.seeds import check_seed
from shared_data.settings import Settings
from v2_handwritten.inference.decoder import Decoder
from v2_handwritten.inference.inspection import draw_attention
from v2_handwritten.inference.kv_cache import KVCache
from v2_handwritten.inference.loading import load_with_tokenizer
from v2_handwritten.inference.sampling import filter_logits, sample
from v2_handwritten.models.transformer import Transformer

PREFILL_CHUNK = 512  # tokens of a prompt in one forward pass; bounds the memory of its logits and masks

Steps = Generator[Float[Tensor, "B V"], Int[Tensor, " B"], None]  # yields logits, is sent the chosen ids


@torch.inference_mode()
def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    eos_token_id: int | Sequence[int] | None = None,
    use_cache: bool = True,
    on_token: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """The new ids after each prompt, an `eos_token_id` that stopped it included; a prompt's continuation does not depend on the others.

    temperature: 0 is greedy. A row of the batch draws from its own stream of numbers, made of `seed` and its index.
    eos_token_id: id (or ids) after which a sequence stops; None: the model's own, `config.eos_token_id`; [] stops nowhere.
        The (first) one also stands in for an empty prompt.
    on_token: called as `on_token(row, id)` for each new token, at once.

    A sequence also stops when it fills the model's positions. Raises `UserError` for a prompt that leaves none free or has ids
    that the model has not, an empty one without `eos_token_id`, or sampling parameters out of range.
    """
    stop_ids = end_ids(model.config.eos_token_id if eos_token_id is None else eos_token_id)
    rows = prompt_ids(prompts, stop_ids, model.config.vocab_size)
    limits = new_token_limits(rows, max_new_tokens, model.config.max_length)
    check_seed(seed)
    if temperature != 0:
        check_sampling(temperature, top_k, top_p)
        uniforms = np.stack(
            [np.random.default_rng([seed, row]).random(max(limits)) for row in range(len(rows))]
        )
    was_training = model.training
    model.eval()  # no dropout
    steps = _cached_steps(model, rows, max(limits)) if use_cache else _recomputed_steps(model, rows)
    logits = next(steps)

    new_ids: list[list[int]] = [[] for _ in rows]
    running = set(range(len(prompts)))
    for position in range(max(limits)):
        if temperature > 0:
            filtered = filter_logits(logits, temperature, top_k, top_p)
            chosen = sample(filtered, torch.from_numpy(uniforms[:, position]))
        else:
            chosen = logits.argmax(dim=-1)
        for row, id in enumerate(chosen.tolist()):
            if row not in running:
                continue
            new_ids[row].append(id)
            if on_token is not None:
                on_token(row, id)
            if id in stop_ids or position + 1 == limits[row]:
                running.remove(row)
        if not running:
            break
        logits = steps.send(chosen)
    model.train(was_training)
    return new_ids


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


def _cached_steps(model: Transformer, prompts: list[list[int]], max_new_tokens: int) -> Steps:
    """Prefill the cache with the prompts, a repeated one once, then decode one token at a time."""
    weight = model.lm_head.weight
    distinct = list(dict.fromkeys(map(tuple, prompts)))
    input_ids, starts = pad_left(distinct, weight.device)
    B, T = input_ids.shape
    repeated = len(prompts) > B
    cache = KVCache(model.config, B, T if repeated else T + max_new_tokens, weight.dtype, weight.device)
    # Dynamic frequencies depend on the length, so that the whole prompt needs the same ones.
    chunk = T if model.config.has_dynamic_rope else PREFILL_CHUNK
    for begin in range(0, T, chunk):
        end = min(begin + chunk, T)
        ids = input_ids[:, begin:end]
        keep = torch.zeros_like(ids, dtype=torch.bool)
        keep[:, -1] = True
        padding = _padded_inputs(starts, begin, end)
        last = model.hidden_states(ids, cache=cache, logits_to_keep=keep, **padding)
    logits = model.logits(last)
    if repeated:
        number = {prompt: row for row, prompt in enumerate(distinct)}
        rows = torch.tensor([number[tuple(prompt)] for prompt in prompts], device=weight.device)
        cache, starts, logits = cache.spread(rows, T + max_new_tokens), starts[rows], logits[rows]
    chosen = yield logits
    if model.config.has_plain_blocks:
        decoder = Decoder(model, cache, starts)
        while True:
            chosen = yield decoder.step(chosen)
    while True:  # the ordinary forward pass of one token
        inputs = _padded_inputs(starts, cache.length, cache.length + 1)
        if inputs:  # a row that has stopped goes on with the others, to positions that the model may not have
            inputs["position_ids"] = inputs["position_ids"].clamp(max=model.config.max_length - 1)
        chosen = yield model(chosen[:, None], cache=cache, **inputs)[:, -1]


def _recomputed_steps(model: Transformer, prompts: list[list[int]]) -> Steps:
    """The ordinary forward pass over everything, for each token again: slow, and what the cache is tested against."""
    rows = [list(prompt) for prompt in prompts]
    positions, device = model.config.max_length, model.lm_head.weight.device
    while True:
        input_ids, starts = pad_left([row[:positions] for row in rows], device)
        logits = model(input_ids, **_padded_inputs(starts, 0, input_ids.shape[1]))
        chosen = yield logits[:, -1]
        for row, id in zip(rows, chosen.tolist(), strict=True):
            row.append(id)


def generate_samples(settings: Settings, run: RunFolder) -> dict[str, int | float]:
    """Stage `generate`: continue the prompts of the settings and keep them in samples.json; draw attention maps for the report."""
    model, tokenizer = load_with_tokenizer(settings, run)
    draw_attention(model, tokenizer, run, run.stage("generate") / "attention.svg")
    return write_samples(generate, model, tokenizer, settings, run)


def generate_command(
    settings: Settings,
    run: RunFolder,
    prompts: list[str],
    model_name: str | Path,
    use_cache: bool,
    write: Callable[[str], None],
) -> None:
    """Command `generate`: continue each prompt, and pass every piece of text to `write` as soon as it is complete."""
    model, tokenizer = load_with_tokenizer(settings, run, model_name)
    continue_prompts(
        partial(generate, use_cache=use_cache), model, tokenizer, settings.generate, prompts, write
    )
