"""The stage `evaluate`: perplexity and bits per byte of a checkpoint on held-out text, beside the entropy floor.

No model can need fewer bits than -log2 P(text), and for the story world P is known. So the ratio to the floor says how much
of what can be learned has been learned, which perplexity alone never says.

Level 1: the same steps with transformers' model and torch's cross-entropy; level 2: the same over torch.

    v3 evaluate
"""

from pathlib import Path

from shared_data.evaluation.held_out import evaluate_held_out
from shared_data.model_names import find_model
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from v3_numpy_deep.inference.loading import load_with_tokenizer
from v3_numpy_deep.inference.scoring import negative_log_probs


def evaluate(
    settings: Settings, run: RunFolder, model_name: str | Path = "pretrain"
) -> dict[str, int | float]:
    """Score a split of the run with a model of any level, by its name (`shared_data/model_names.py`).

    Documents are scored one by one, with windows no longer than the model was trained on. Raises `UserError` where the
    model is damaged or of another vocabulary, or the split is empty.
    """
    found = find_model(run, model_name)
    model, tokenizer = load_with_tokenizer(settings, run, model_name)
    context_length = model.config.max_position_embeddings
    if found.folder.parent == run.path:  # a model of this run
        context_length = min(context_length, settings.pretrain.sequence_length)
    return evaluate_held_out(
        negative_log_probs, model, tokenizer, found.tokenizer, settings.evaluate, run, context_length
    )
