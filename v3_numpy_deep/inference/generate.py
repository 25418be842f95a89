"""Text from a model: greedy or sampled, one prompt or a batch, streamed, with a key-value cache.

Autoregressive decoding is a loop: logits of the last position, a choice, one more token. The prompt passes through the
model once (prefill), in chunks so that long prompts need no more memory than short ones; after that each token is one
step of `decoder.py`. Prompts of different lengths stand right-aligned behind padding that no token sees.

Level 1 calls transformers' `model.generate`; level 2 is the same in torch.
Theory: v2_handwritten/inference/generate.md.

    v3 generate --prompt "Once upon a time"
"""

import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from shared_data.errors import UserError
from shared_data.files import write_json
from shared_data.generated_text import consistent_story_ratio, describe
from shared_data.held_out import check_vocabulary
from shared_data.runs import RunFolder
from shared_data.settings import GenerateSettings, Settings
from v3_numpy_deep.autograd import Array, no_grad
from v3_numpy_deep.data_pipeline.tokenizer.tokenizer import Tokenizer
from v3_numpy_deep.device import resolve_device
from v3_numpy_deep.finetune.peft.adapters import base_of_adapter, load_adapter
from v3_numpy_deep.finetune.peft.lora import merge_lora
from v3_numpy_deep.inference.decoder import Decoder
from v3_numpy_deep.inference.kv_cache import KVCache
from v3_numpy_deep.inference.sampling import check_sampling, filter_logits, sample
from v3_numpy_deep.inference.streaming import TextStream
from v3_numpy_deep.models.checkpoint import load_model
from v3_numpy_deep.models.transformer import Transformer

STORIES = 64  # told from nothing, to be checked by the story world
STORY_TOKENS = 512  # more than any story has
PREFILL_CHUNK = 512  # tokens of a prompt in one forward pass; bounds the memory of its logits and masks

Steps = Generator[Float[Array, "B V"], Int[Array, " B"], None]  # yields logits, is sent the chosen ids


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
    """The new ids after each prompt, an `eos_token_id` that stopped it included; what a prompt gives does not depend on the others.

    temperature: 0 is greedy. A row of the batch draws from its own stream of numbers, made of `seed` and its index.
    eos_token_id: id (or ids) after which a sequence stops; the (first) one also stands in for an empty prompt.
    on_token: called as `on_token(row, id)` for each new token, at once.

    A sequence also stops when it fills the model's positions. Raises `UserError` for a prompt that leaves none free, an empty
    one without `eos_token_id`, or sampling parameters out of range.
    """
    stop_ids = [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id or [])
    rows = [list(prompt) or stop_ids[:1] for prompt in prompts]
    limits = _limits(rows, max_new_tokens, model.config.max_position_embeddings)
    if temperature > 0:
        check_sampling(temperature, top_k, top_p)
        uniforms = np.stack(
            [np.random.default_rng([seed, row]).random(max(limits)) for row in range(len(prompts))]
        )
    was_training = model.training
    model.eval()  # no dropout
    steps = _cached_steps(model, rows, max(limits)) if use_cache else _recomputed_steps(model, rows)
    logits = next(steps)

    new_ids: list[list[int]] = [[] for _ in prompts]
    running = set(range(len(prompts)))
    for position in range(max(limits)):
        if temperature > 0:
            filtered = filter_logits(logits, temperature, top_k, top_p)
            chosen = sample(filtered, uniforms[:, position])
        else:
            chosen = logits.argmax(axis=-1)
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


def pad_left(
    rows: Sequence[Sequence[int]], device: str = "cpu"
) -> tuple[Int[Array, "B T"], Int[Array, " B"]]:
    """The rows right-aligned behind zeros, and how many zeros stand before each."""
    longest = max(map(len, rows))
    input_ids = np.array([[0] * (longest - len(row)) + list(row) for row in rows])
    return input_ids, np.array([longest - len(row) for row in rows])


def _padded_inputs(starts: Int[Array, " B"], begin: int, end: int) -> dict[str, Any]:
    """Positions that count from each row's first token, and the mask of its padding, for slots begin : end."""
    if not starts.any():
        return {}
    slots = np.arange(end)
    position_ids = np.maximum(slots - starts[:, None], 0)
    return {"position_ids": position_ids[:, begin:], "attention_mask": slots >= starts[:, None]}


def _cached_steps(model: Transformer, prompts: list[list[int]], max_new_tokens: int) -> Steps:
    """Prefill the cache with the prompts, each once however often it is asked, then decode one token at a time."""
    weight = model.lm_head.weight
    distinct = list(dict.fromkeys(map(tuple, prompts)))
    input_ids, starts = pad_left(distinct)
    B, T = input_ids.shape
    repeated = len(prompts) > B
    cache = KVCache(model.config, B, T if repeated else T + max_new_tokens, weight.dtype)
    with no_grad():
        for begin in range(0, T, PREFILL_CHUNK):
            end = min(begin + PREFILL_CHUNK, T)
            ids = input_ids[:, begin:end]
            keep = np.zeros_like(ids, bool)
            keep[:, -1] = True
            padding = _padded_inputs(starts, begin, end)
            last = model.hidden_states(ids, cache=cache, logits_to_keep=keep, **padding)
        logits = model.lm_head(last).data
    if repeated:
        number = {prompt: row for row, prompt in enumerate(distinct)}
        rows = np.array([number[tuple(prompt)] for prompt in prompts])
        cache, starts, logits = cache.spread(rows, T + max_new_tokens), starts[rows], logits[rows]
    chosen = yield logits
    decoder = Decoder(model, cache, starts)
    while True:
        chosen = yield decoder.step(chosen)


def _recomputed_steps(model: Transformer, prompts: list[list[int]]) -> Steps:
    """The ordinary forward pass over everything, for each token again: slow, and what the cache is tested against."""
    rows = [list(prompt) for prompt in prompts]
    positions = model.config.max_position_embeddings
    while True:
        input_ids, starts = pad_left([row[:positions] for row in rows])
        with no_grad():
            logits = model(input_ids, **_padded_inputs(starts, 0, input_ids.shape[1])).data
        chosen = yield logits[:, -1]
        for row, id in zip(rows, chosen.tolist(), strict=True):
            row.append(id)


def encode_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a prompt as they stand at the beginning of a document: after one end-of-text, as in pretraining.

    A tokenizer that puts a token of its own before each text (Llama 3's <|begin_of_text|>) is left to do so.
    """
    ids = tokenizer.encode(text)
    begins = bool(ids) and ids[0] in tokenizer.special_tokens.values()
    return ids if begins else [tokenizer.end_of_text_id, *ids]


def load_for_generation(
    settings: Settings, run: RunFolder, checkpoint: Path | None = None
) -> tuple[Transformer, Tokenizer]:
    """The model of a checkpoint (default: that of the run) and the tokenizer beside it (default: that of the run).

    The checkpoint may be an adapter, whose base is then loaded with it.
    Raises `UserError` where either is missing or damaged, or they do not belong together.
    """
    device = resolve_device(settings.device)
    given = checkpoint or run.model("pretrain")
    base = base_of_adapter(given)  # of an adapter, the model it belongs to
    folder = base or given
    model = load_model(folder, device=device)
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
    checkpoint: Path | None,
    use_cache: bool,
    write: Callable[[str], None],
) -> None:
    """Command `generate`: continue each prompt, and hand every piece of text to `write` as soon as it is complete."""
    section = settings.generate
    model, tokenizer = load_for_generation(settings, run, checkpoint)
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
