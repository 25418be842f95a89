"""Text from a model: greedy or sampled, one prompt or a batch, streamed: transformers' `model.generate`.

It caches keys and values, pads to the left, filters and samples; what we add is the arguments that all levels share.
Greedy ids equal those of levels 2 and 3; sampled ones do not, since the library draws from torch's global generator.

Levels 2 and 3 write the loop, the cache and the decode step by hand. Theory: v2_handwritten/inference/generate.md.

    v1 generate --prompt "Once upon a time"
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from shared_data.errors import UserError
from shared_data.evaluation.held_out import check_vocabulary
from shared_data.files import write_json
from shared_data.generated_text import consistent_story_ratio, describe
from shared_data.model_names import resolve_model
from shared_data.runs import RunFolder
from shared_data.settings import GenerateSettings, Settings
from v1_quick.data_pipeline.tokenizer.tokenizer import Tokenizer
from v1_quick.device import resolve_device
from v1_quick.inference.sampling import check_sampling
from v1_quick.inference.streaming import TextStream
from v1_quick.models.checkpoint import load_model
from v1_quick.models.transformer import Transformer

STORIES = 64  # told from nothing, to be checked by the story world
STORY_TOKENS = 512  # more than any story has


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
    """The new ids after each prompt, an `eos_token_id` that stopped it included; see level 2 for the arguments.

    Raises `UserError` for a prompt that leaves none of the model's positions free, an empty one without `eos_token_id`, or
    sampling parameters out of range.
    """
    stop_ids = [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id or [])
    rows = [list(prompt) or stop_ids[:1] for prompt in prompts]
    limits = _limits(rows, max_new_tokens, model.config.max_position_embeddings)
    if len(set(limits)) > 1:  # the library stops the whole batch when its longest row is full
        return [
            generate(
                model,
                [row],
                max_new_tokens=limit,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                seed=seed + index,
                eos_token_id=stop_ids,
                use_cache=use_cache,
                on_token=_for_row(on_token, index),
            )[0]
            for index, (row, limit) in enumerate(zip(rows, limits, strict=True))
        ]
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        check_sampling(temperature, top_k, top_p)
        sampling = {
            "do_sample": True,
            "temperature": float(temperature),
            "top_k": top_k or 0,
            "top_p": top_p or 1.0,
        }
    input_ids, attention_mask = pad_left(rows, model.library.device)
    longest = input_ids.shape[1]
    was_training = model.training
    model.eval()  # no dropout
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        ids = model.library.generate(
            input_ids,
            attention_mask=attention_mask,
            generation_config=GenerationConfig(
                max_new_tokens=limits[0],
                eos_token_id=stop_ids or None,
                pad_token_id=0,  # fills the rows that stop first
                use_cache=use_cache,
                **sampling,
            ),
            stopping_criteria=StoppingCriteriaList([_Listener(on_token, stop_ids)] if on_token else []),
        )
    model.train(was_training)
    return [_until_stop(row, stop_ids) for row in ids[:, longest:].tolist()]


def _limits(prompts: list[list[int]], max_new_tokens: int, positions: int) -> list[int]:
    """How many tokens each prompt may be continued by; raises `UserError` where that is none."""
    if not prompts:
        raise UserError("there is no prompt; give one, or an empty text to begin at the beginning")
    for prompt in prompts:
        if not prompt:
            raise UserError("a prompt is empty, and there is no eos_token_id to begin with; give it a token")
        if len(prompt) >= positions:
            raise UserError(
                f"a prompt of {len(prompt)} tokens leaves no room in the model's {positions} positions; shorten it"
            )
    return [min(max_new_tokens, positions - len(prompt)) for prompt in prompts]


def pad_left(rows: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """The rows right-aligned behind zeros, and the library's mask that is 0 on them."""
    longest = max(map(len, rows))
    input_ids = [[0] * (longest - len(row)) + list(row) for row in rows]
    attention_mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(input_ids, device=device), torch.tensor(attention_mask, device=device)


def _for_row(on_token: Callable[[int, int], None] | None, index: int) -> Callable[[int, int], None] | None:
    """`on_token` for a row that is generated by itself."""
    return on_token and (lambda _, id: on_token(index, id))


class _Listener(StoppingCriteria):
    """Hears of each new token of a batch (the library's streamers follow one sequence only); never stops anything."""

    def __init__(self, on_token: Callable[[int, int], None], stop_ids: list[int]) -> None:
        self.on_token, self.stop_ids, self.stopped = on_token, stop_ids, set[int]()

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        for row, id in enumerate(input_ids[:, -1].tolist()):
            if row not in self.stopped:
                self.on_token(row, id)
                if id in self.stop_ids:
                    self.stopped.add(row)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _until_stop(ids: list[int], stop_ids: list[int]) -> list[int]:
    """The ids up to the first that stops, with it; after it the library pads."""
    stops = [index for index, id in enumerate(ids) if id in stop_ids]
    return ids[: stops[0] + 1] if stops else ids


def encode_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a prompt as they stand at the beginning of a document: after one end-of-text, as in pretraining.

    A tokenizer that puts a token of its own before each text (Llama 3's <|begin_of_text|>) is left to do so.
    """
    ids = tokenizer.encode(text)
    begins = bool(ids) and ids[0] in tokenizer.special_tokens.values()
    return ids if begins else [tokenizer.end_of_text_id, *ids]


def load_for_generation(
    settings: Settings, run: RunFolder, name: str | Path = "pretrain"
) -> tuple[Transformer, Tokenizer]:
    """The model of that name (`shared_data/model_names.py`) and the tokenizer beside it (default: that of the run).

    Of an adapter, its base is loaded with it. Raises `UserError` where either is missing or damaged, or they do not belong together.
    """
    device = resolve_device(settings.device)
    given = resolve_model(run, name)
    base = None  # of an adapter, the model it belongs to
    if (given / "adapter_config.json").is_file():  # peft takes seconds to import
        from v1_quick.finetune.peft.adapters import base_of_adapter, load_adapter
        from v1_quick.finetune.peft.lora import merge_lora

        base = base_of_adapter(given)
    folder = base or given
    # A CPU computes bfloat16 many times slower than float32.
    model = load_model(folder, dtype=torch.float32 if device.type == "cpu" else None, device=device)
    if base:
        load_adapter(model, given)
        merge_lora(model)
    own = any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))
    tokenizer = Tokenizer.load(folder if own else run.tokenizer)
    check_vocabulary(folder, model.config.vocab_size, folder if own else run.tokenizer, tokenizer.vocab_size)
    return model.eval(), tokenizer


def generate_samples(settings: Settings, run: RunFolder) -> dict[str, int | float]:
    """Stage `generate`: continue the prompts of the settings, keep them in samples.json, measure speed and variety.

    On the story world the model also tells stories from nothing, and the world says how many of them it could have told.
    """
    section = settings.generate
    model, tokenizer = load_for_generation(settings, run)
    prompts = [encode_prompt(tokenizer, prompt) for prompt in section.prompts]
    started = time.perf_counter()
    new_ids = _sampled(model, tokenizer, prompts, section, section.max_new_tokens)
    seconds = time.perf_counter() - started
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in new_ids]
    samples = [
        {"prompt": prompt, "text": text, "tokens": len(ids), "finished": ids[-1] == tokenizer.end_of_text_id}
        for prompt, text, ids in zip(section.prompts, texts, new_ids, strict=True)
    ]
    write_json(run.stage("generate") / "samples.json", samples)
    tokens = sum(len(ids) for ids in new_ids)
    metrics: dict[str, int | float] = {"samples": len(samples), "tokens": tokens}
    metrics |= {"tokens_per_second": tokens / seconds, **describe(texts)}
    if settings.data.source == "story_world":
        beginnings = [encode_prompt(tokenizer, "")] * STORIES
        ids = _sampled(model, tokenizer, beginnings, section, STORY_TOKENS)
        stories = [tokenizer.decode(story, skip_special_tokens=True) for story in ids]
        metrics |= {"stories": STORIES, "consistent_story_ratio": consistent_story_ratio(stories)}
    return metrics


def generate_command(
    settings: Settings,
    run: RunFolder,
    prompts: list[str],
    model_name: str | Path,
    use_cache: bool,
    write: Callable[[str], None],
) -> None:
    """Command `generate`: continue each prompt, and hand every piece of text to `write` as soon as it is complete."""
    section = settings.generate
    model, tokenizer = load_for_generation(settings, run, model_name)
    for index, prompt in enumerate(prompts):
        stream, ids = TextStream(tokenizer), encode_prompt(tokenizer, prompt)
        write(prompt)
        (new_ids,) = _sampled(
            model,
            tokenizer,
            [ids],
            section,
            section.max_new_tokens,
            seed=section.seed + index,
            use_cache=use_cache,
            on_token=lambda _, id, stream=stream: write(stream.add(id)),
        )
        write(stream.finish() + "\n")
        positions = model.config.max_position_embeddings
        if len(ids) + len(new_ids) == positions and len(new_ids) < section.max_new_tokens:
            write(f"[stopped: the text fills all {positions} positions of the model]\n")


def _sampled(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: list[list[int]],
    section: GenerateSettings,
    max_new_tokens: int,
    seed: int | None = None,
    **options: Any,
) -> list[list[int]]:
    """`generate` with the parameters of the settings, up to a token that the tokenizer or the model ends a text with."""
    configured = model.config.eos_token_id
    stop_ids = [configured] if isinstance(configured, int) else list(configured or [])
    return generate(
        model,
        prompts,
        max_new_tokens=max_new_tokens,
        temperature=section.temperature,
        top_k=section.top_k,
        top_p=section.top_p,
        seed=section.seed if seed is None else seed,
        eos_token_id=list(dict.fromkeys([tokenizer.end_of_text_id, *stop_ids])),
        **options,
    )
