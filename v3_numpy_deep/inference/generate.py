"""Text from a model: greedy or sampled, one prompt or a batch, streamed, with a key-value cache.

Autoregressive decoding is a loop: logits of the last position, a choice, one more token. Where the logits come from stands in
`steps.py`, what penalties do to them in `penalties.py`, the choice in `sampling.py`; `beam_search.py` follows several sequences at once.

Level 1 calls transformers' `model.generate`; level 2 is the same in torch.
Theory: v2_handwritten/inference/generate.md.

    v3 generate --prompt "Once upon a time"
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from shared_data.inference.arguments import (
    check_seeds,
    end_ids,
    new_token_limits,
    pass_on,
    prompt_ids,
    uniform_numbers,
)
from shared_data.inference.commands import continue_prompts, write_samples
from shared_data.inference.sampling_parameters import SamplingParameters
from shared_data.inference.stop_strings import StopCriteria
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from v3_numpy_deep.inference.beam_search import beam_search
from v3_numpy_deep.inference.loading import load_with_tokenizer
from v3_numpy_deep.inference.penalties import apply_penalties, check_allowed, check_finite
from v3_numpy_deep.inference.sampling import filter_logits, sample
from v3_numpy_deep.inference.steps import CachedSteps, RecomputedSteps
from v3_numpy_deep.models.transformer import Transformer


@np.errstate(over="ignore", invalid="ignore")  # what is not finite, check_finite names
def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    typical_p: float | None = None,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    no_repeat_ngram_size: int = 0,
    logit_bias: Mapping[int, float] | None = None,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    early_stopping: bool | str = False,
    stop_strings: Sequence[str] | str | None = None,
    tokenizer: Any = None,
    seed: int | Sequence[int] = 0,
    eos_token_id: int | Sequence[int] | None = None,
    use_cache: bool = True,
    on_token: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """The new ids after each prompt, what stopped it included; a prompt's continuation does not depend on the others.

    temperature: 0 is greedy. It and what follows up to `stop_strings` is explained in `SamplingParameters`.
    stop_strings: texts that end a sequence, also inside a token; they need the `tokenizer`.
    seed: a row of the batch draws from its own stream of numbers, made of `seed` and its index; a list has a seed for each prompt, with
        which it draws what it would draw alone.
    eos_token_id: id (or ids) after which a sequence stops; None: the model's own, `config.eos_token_id`; [] stops nowhere.
        The (first) one also stands in for an empty prompt.
    on_token: called as `on_token(row, id)` for each new token, at once; of a beam search, when it has ended.

    A sequence also stops when it fills the model's positions. Raises `UserError` for a prompt that leaves none free or has ids
    that the model has not, an empty one without `eos_token_id`, or sampling parameters out of range.
    """
    sampling = SamplingParameters(
        temperature,
        top_k,
        top_p,
        min_p,
        typical_p,
        repetition_penalty,
        presence_penalty,
        frequency_penalty,
        no_repeat_ngram_size,
        logit_bias,
        num_beams,
        length_penalty,
        early_stopping,
        stop_strings,
    )
    sampling.check_ids(model.config.vocab_size)
    stop_ids = end_ids(model.config.eos_token_id if eos_token_id is None else eos_token_id)
    stop = StopCriteria(stop_ids, sampling.stop_list, tokenizer)
    rows = prompt_ids(prompts, stop_ids, model.config.vocab_size)
    limits = new_token_limits(rows, max_new_tokens, model.config.max_length)
    check_seeds(seed, len(rows))
    was_training = model.training
    model.eval()  # no dropout
    try:
        if num_beams > 1:
            new_ids = []
            for row, limit in zip(rows, limits, strict=True):
                best = beam_search(model, row, sampling, max_new_tokens=limit, stop=stop, use_cache=use_cache)
                new_ids.append(best.ids[len(row) :])
            pass_on(new_ids, on_token)
        else:
            make_steps = CachedSteps if use_cache else RecomputedSteps
            steps = make_steps(model, rows, max(limits))
            uniforms = uniform_numbers(seed, len(rows), max(limits)) if temperature > 0 else None
            new_ids = _decode(steps, rows, limits, sampling, uniforms, stop, on_token)
    finally:
        model.train(was_training)
    return new_ids


def _decode(
    steps: CachedSteps | RecomputedSteps,
    prompts: list[list[int]],
    limits: list[int],
    sampling: SamplingParameters,
    uniforms: Float[np.ndarray, "B steps"] | None,
    stop: StopCriteria,
    on_token: Callable[[int, int], None] | None,
) -> list[list[int]]:
    """The loop: logits, penalties, a choice for each row; until every row has stopped or is `limits` tokens longer."""
    prompt_lengths, has_penalties = list(map(len, prompts)), sampling.has_penalties
    sequences = [list(prompt) for prompt in prompts]
    running = set(range(len(prompts)))
    filters = (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, sampling.typical_p)
    logits = steps.logits
    for position in range(max(limits)):
        if has_penalties:
            logits = apply_penalties(logits, sequences, prompt_lengths, sampling)
            logits = check_allowed(logits, running)
        check_finite(logits)
        if uniforms is None:  # greedy
            chosen = logits.argmax(axis=-1)
        else:
            chosen = sample(filter_logits(logits, *filters), uniforms[:, position])
        for row, id in enumerate(chosen.tolist()):
            if row not in running:
                continue
            sequences[row].append(id)
            if on_token is not None:
                on_token(row, id)
            if position + 1 == limits[row] or stop.are_met(sequences[row]):
                running.remove(row)
        if not running:
            break
        logits = steps.step(chosen)
    return [ids[start:] for ids, start in zip(sequences, prompt_lengths, strict=True)]


def generate_samples(settings: Settings, run: RunFolder) -> dict[str, int | float]:
    """Stage `generate`: continue the prompts of the settings and keep them in samples.json."""
    model, tokenizer = load_with_tokenizer(settings, run)
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
