"""Text from a model: `model.generate` of transformers, which caches keys and values, filters and samples.

Greedy ids equal those of levels 2 and 3; sampled ones do not, since the library draws from torch's global generator.

    v1 generate --prompt "Once upon a time"
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from shared_data.inference.arguments import check_sampling, end_ids, new_token_limits, prompt_ids
from shared_data.inference.commands import continue_prompts, write_samples
from shared_data.runs import RunFolder
from shared_data.seeds import check_seed
from shared_data.settings import Settings
from v1_quick.inference.loading import load_with_tokenizer


def generate(
    model: PreTrainedModel,
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
    """The new ids after each prompt, an `eos_token_id` that stopped it included; see level 2 for the arguments.

    The library stops the whole batch when its longest row fills the model's positions.
    """
    stops = end_ids(model.config.eos_token_id if eos_token_id is None else eos_token_id)
    rows = prompt_ids(prompts, stops, model.config.vocab_size)
    limit = min(new_token_limits(rows, max_new_tokens, model.config.max_position_embeddings))
    sampling: dict[str, Any] = {"do_sample": False}
    check_seed(seed)
    if temperature != 0:
        check_sampling(temperature, top_k, top_p)
        sampling = {
            "do_sample": True,
            "temperature": float(temperature),
            "top_k": top_k or 0,
            "top_p": top_p or 1.0,
        }
    longest = max(map(len, rows))
    input_ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=model.device)
    padding = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=model.device)
    config = GenerationConfig(
        max_new_tokens=limit,
        eos_token_id=stops or None,
        pad_token_id=0,  # fills the rows that stop first
        use_cache=use_cache,
        **sampling,
    )
    streamer = TokenStreamer(on_token, stops) if on_token else None
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        ids = model.eval().generate(
            input_ids, attention_mask=padding, generation_config=config, streamer=streamer
        )
    return [_until_stop(row, stops) for row in ids[:, longest:].tolist()]


class TokenStreamer(BaseStreamer):
    """Passes each new token on as `on_token(row, id)`, up to the one that stops its row."""

    def __init__(self, on_token: Callable[[int, int], None], stops: Sequence[int]) -> None:
        self.on_token, self.stops = on_token, stops
        self.prompts_are_next, self.stopped = True, set[int]()

    def put(self, value: torch.Tensor) -> None:
        """The ids of the prompts first, then one new id of each row."""
        if self.prompts_are_next:
            self.prompts_are_next = False
            return
        for row, id in enumerate(value.tolist()):
            if row not in self.stopped:
                self.on_token(row, id)
            if id in self.stops:
                self.stopped.add(row)

    def end(self) -> None:
        """Nothing is left to pass on."""


def _until_stop(ids: list[int], stops: list[int]) -> list[int]:
    """The ids up to the first that stops, with it; after it the library pads."""
    return ids[: next((index + 1 for index, id in enumerate(ids) if id in stops), len(ids))]


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
