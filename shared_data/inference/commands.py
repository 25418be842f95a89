"""The stage and the command `generate` around a level's function of that name.

metrics = write_samples(generate, model, tokenizer, settings, run)
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from shared_data.files import write_json
from shared_data.generated_text import consistent_story_ratio, describe
from shared_data.inference.arguments import end_ids
from shared_data.inference.chat import Generate
from shared_data.inference.notes import say_cut_off, say_nothing_written
from shared_data.inference.prompts import encode_prompt
from shared_data.inference.sample_prompts import sample_prompts
from shared_data.inference.stop_strings import text_before_stop
from shared_data.inference.streaming import TextStream
from shared_data.runs import RunFolder
from shared_data.settings import GenerateSettings, Settings

STORIES = 64  # from an empty prompt, to be checked by the story world
STORY_TOKENS = 512  # more than any story has


def write_samples(
    generate: Generate, model: Any, tokenizer: Any, settings: Settings, run: RunFolder
) -> dict[str, int | float]:
    """Continue the prompts (`sample_prompts.py`), keep them in samples.json, measure speed and variety.

    On the story world the model also writes stories from an empty prompt, and the world says how many of them are possible.
    """
    section = settings.generate
    options = section.model_dump(exclude={"prompts"}) | {"tokenizer": tokenizer}
    ends = end_ids(model.config.eos_token_id)
    prompts = sample_prompts(settings, run)
    started = time.perf_counter()
    new_ids = generate(model, [encode_prompt(model, tokenizer, prompt) for prompt in prompts], **options)
    seconds = time.perf_counter() - started
    whole = [tokenizer.decode(ids, skip_special_tokens=True) for ids in new_ids]
    texts = [text_before_stop(text, section.stop_strings) for text in whole]
    finished = [
        ids[-1] in ends or text != uncut for ids, text, uncut in zip(new_ids, texts, whole, strict=True)
    ]
    samples = [
        {"prompt": prompt, "text": text, "tokens": len(ids), "finished": ended}
        for prompt, text, ids, ended in zip(prompts, texts, new_ids, finished, strict=True)
    ]
    write_json(run.stage("generate") / "samples.json", samples)
    tokens = sum(len(ids) for ids in new_ids)
    metrics: dict[str, int | float] = {"samples": len(samples), "tokens": tokens}
    metrics |= {"tokens_per_second": tokens / seconds, **describe(texts)}
    if settings.data.source == "story_world":
        beginnings = [encode_prompt(model, tokenizer, "")] * STORIES
        new_ids = generate(model, beginnings, **options | {"max_new_tokens": STORY_TOKENS})
        stories = [tokenizer.decode(ids, skip_special_tokens=True) for ids in new_ids]
        metrics |= {"stories": STORIES, "consistent_story_ratio": consistent_story_ratio(stories)}
    return metrics


def continue_prompts(
    generate: Generate,
    model: Any,
    tokenizer: Any,
    section: GenerateSettings,
    prompts: Sequence[str],
    write: Callable[[str], None],
) -> None:
    """Continue each prompt, and pass every piece of text to `write` as soon as it is complete; the text ends before a stop string."""
    options = section.model_dump(exclude={"prompts", "seed"}) | {"tokenizer": tokenizer}
    ends, positions = end_ids(model.config.eos_token_id), model.config.max_position_embeddings
    for index, prompt in enumerate(prompts):
        stream = TextStream(tokenizer, section.stop_strings)
        ids = encode_prompt(model, tokenizer, prompt)
        write(prompt)
        (new_ids,) = generate(
            model,
            [ids],
            seed=section.seed + index,
            on_token=lambda _, id, stream=stream: write(stream.add(id)),
            **options,
        )
        write(stream.finish() + "\n")
        ended = stream.before_stop.stopped or new_ids[-1] in ends
        if len(new_ids) == 1 and ended:
            say_nothing_written()
        elif len(new_ids) == section.max_new_tokens and not ended:
            say_cut_off(section.max_new_tokens)
        elif len(ids) + len(new_ids) == positions and not ended:
            write(f"[stopped: the text fills all {positions} positions of the model]\n")
