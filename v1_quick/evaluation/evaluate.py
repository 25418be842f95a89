"""The stage `evaluate`: perplexity and bits per byte of a checkpoint on held-out text, beside the entropy floor.

No model can need fewer bits than -log2 P(text), and for the story world P is known. So the ratio to the floor says how much
of what can be learned has been learned, which perplexity alone never says.

Levels 2 and 3: the same steps with the model and the scoring written by hand.

    v1 evaluate
"""

import time
from pathlib import Path

from shared_data.evaluation.held_out import check_vocabulary, read_held_out
from shared_data.model_names import resolve_model
from shared_data.progress import progress
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from v1_quick.data_pipeline.tokenizer.tokenizer import Tokenizer
from v1_quick.evaluation.metrics.perplexity import bits_per_byte, perplexity, score_tokens
from v1_quick.inference.generate import load_for_generation
from v1_quick.pretrain.data_loader import open_tokens, read_token_facts


def evaluate(
    settings: Settings, run: RunFolder, model_name: str | Path = "pretrain"
) -> dict[str, int | float]:
    """Score a split of the run with a model of any level, by its name (`shared_data/model_names.py`).

    Documents are scored one by one, with windows no longer than the model was trained on. Raises `UserError` where the
    model is damaged or of another vocabulary, or the split is empty.
    """
    section = settings.evaluate
    folder = resolve_model(run, model_name)
    model, _ = load_for_generation(settings, run, folder)
    tokenizer = Tokenizer.load(run.tokenizer)
    check_vocabulary(folder, model.config.vocab_size, run.tokenizer, tokenizer.vocab_size)
    path = run.tokens(section.split)
    held_out = read_held_out(
        run,
        section.split,
        open_tokens(path),
        read_token_facts(path),
        section.max_tokens,
        lambda ids: len(tokenizer.decode(ids).encode()),
    )
    context_length = model.config.max_position_embeddings
    if folder.parent == run.path:  # a model of this run
        context_length = min(context_length, settings.pretrain.sequence_length)

    started = time.perf_counter()
    with progress(len(held_out.tokens), "evaluate", "tokens") as bar:
        score = score_tokens(
            model,
            held_out.tokens,
            context_length,
            section.stride or max(1, context_length // 2),
            section.batch_size,
            tokenizer.end_of_text_id,
            bar.update,
        )
    seconds = time.perf_counter() - started
    metrics: dict[str, int | float] = {
        "perplexity": perplexity(score),
        "bits_per_byte": bits_per_byte(score, held_out.bytes),
        "tokens": score.tokens,
        "bytes": held_out.bytes,
        "tokens_per_second": score.tokens / seconds,
    }
    if held_out.floor_bits_per_byte is not None:
        metrics["floor_bits_per_byte"] = held_out.floor_bits_per_byte
        metrics["ratio_to_floor"] = metrics["bits_per_byte"] / held_out.floor_bits_per_byte
    return metrics
