"""Text from a model: `model.generate` of transformers, which caches keys and values, filters and samples.

Greedy ids equal those of levels 2 and 3; sampled ones do not, since the library draws from torch's global generator.

    v1 generate --prompt "Once upon a time"
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    PreTrainedModel,
    StoppingCriteriaList,
    StopStringCriteria,
)

from shared_data.errors import UserError
from shared_data.inference.arguments import end_ids, new_token_limits, pass_on, prompt_ids
from shared_data.inference.commands import continue_prompts, write_samples
from shared_data.inference.sampling_parameters import SamplingParameters
from shared_data.runs import RunFolder
from shared_data.seeds import check_seed
from shared_data.settings import Settings
from v1_quick.inference.loading import load_with_tokenizer
from v1_quick.inference.streaming import TokenStreamer, until_end


def generate(
    model: PreTrainedModel,
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
    """The new ids after each prompt, what stopped it included; see level 2 for the arguments.

    The library stops the whole batch when its longest row fills the model's positions, draws all rows from one generator, and has no
    presence or frequency penalty.
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
    stops = end_ids(model.config.eos_token_id if eos_token_id is None else eos_token_id)
    rows = prompt_ids(prompts, stops, model.config.vocab_size)
    limit = min(new_token_limits(rows, max_new_tokens, model.config.max_position_embeddings))
    if isinstance(seed, Sequence):
        raise UserError(
            "model.generate draws all rows from one generator; pass one seed, or one prompt a call"
        )
    check_seed(seed)
    longest = max(map(len, rows))
    input_ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=model.device)
    padding = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=model.device)
    config = GenerationConfig(
        max_new_tokens=limit,
        eos_token_id=stops or None,
        pad_token_id=0,  # fills the rows that stop first
        use_cache=use_cache,
        **library_options(sampling),
    )
    ends = StoppingCriteriaList([EosTokenCriteria(stops)])
    if sampling.stop_list:
        if tokenizer is None:
            raise UserError("stop_strings needs the texts of tokens; pass tokenizer=tokenizer as well")
        ends.append(StopStringCriteria(tokenizer, sampling.stop_list))
    streamer = TokenStreamer(on_token, ends) if on_token and num_beams == 1 else None
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        ids = model.eval().generate(
            input_ids,
            attention_mask=padding,
            generation_config=config,
            streamer=streamer,
            tokenizer=tokenizer,
        )
    new_ids = [until_end(row, longest, ends) for row in ids]
    if num_beams > 1:  # is not streamed
        pass_on(new_ids, on_token)
    return new_ids


def library_options(sampling: SamplingParameters) -> dict[str, Any]:
    """The arguments of `GenerationConfig`; raises `UserError` for what it has not."""
    if sampling.presence_penalty or sampling.frequency_penalty:
        raise UserError(
            "transformers has no presence_penalty and no frequency_penalty; use repetition_penalty, or level 2 or 3"
        )
    options: dict[str, Any] = {
        "do_sample": sampling.temperature != 0,
        "repetition_penalty": float(sampling.repetition_penalty),
        "no_repeat_ngram_size": sampling.no_repeat_ngram_size,
        "sequence_bias": [[[id], float(bias)] for id, bias in (sampling.logit_bias or {}).items()] or None,
        "stop_strings": sampling.stop_list or None,
    }
    if sampling.num_beams > 1:
        names = ("num_beams", "length_penalty", "early_stopping")
        options |= {name: getattr(sampling, name) for name in names}
    if sampling.temperature != 0:
        options |= {
            "temperature": float(sampling.temperature),
            "top_k": sampling.top_k or 0,
            "top_p": sampling.top_p or 1.0,
            "min_p": sampling.min_p or 0.0,
            "typical_p": sampling.typical_p or 1.0,
        }
    return options


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
