"""The stage `reward`: a reward model from preference pairs, measured on pairs that were held out (Stiennon et al. 2020).

The model starts as the tuned language model with a new score in place of the output matrix. Both completions of a pair pass
through the model in one batch; the loss compares their scores (algorithms/reward_loss.md).

Level 1: trl's `RewardTrainer`. Level 3: the same over its own autograd, the pairs shared out among threads.

    uv run v2 reward --config tiny
"""

from collections import defaultdict

import torch
from jaxtyping import Float
from torch import Tensor

from shared_data.alignment.pair_batches import PairBatch, PairBatches, evaluate_pairs, open_pair_batches
from shared_data.corpus.bad_records import BadRecords
from shared_data.device import resolve_device
from shared_data.files import write_json
from shared_data.model_names import tokenizer_of
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from shared_data.training.training_run import Metrics
from v2_handwritten.align.algorithms.reward_loss import reward_loss
from v2_handwritten.inference.loading import load_to_train
from v2_handwritten.models.checkpoint import save_model
from v2_handwritten.models.reward_model import RewardModel
from v2_handwritten.pretrain.components.training import Training


def reward(settings: Settings, run: RunFolder) -> Metrics:
    """Train a reward model that starts from the tuned model of the run; returns the metrics of the stage.

    Raises `UserError` for a record that is no pair or does not fit, a missing checkpoint, a diverged loss.
    """
    section = settings.reward
    tuned, tokenizer = load_to_train(settings, run, "reward")
    model = RewardModel.from_transformer(tuned, section.seed).to(resolve_device(settings.device))
    positions = model.config.max_position_embeddings
    bad = BadRecords(section.on_bad_record)
    pairs, eval_pairs = open_pair_batches(settings, "reward", tokenizer, positions, bad)

    def step(batch: PairBatch) -> tuple[Tensor, Metrics]:
        scores = pair_scores(model, batch)
        margin = torch.from_numpy(batch.margins).to(scores)
        chosen, rejected = scores.chunk(2)
        return reward_loss(chosen, rejected, margin, section.center_rewards_coefficient)

    @torch.no_grad()
    def evaluate() -> Metrics:
        model.eval()
        found = evaluate_pairs(eval_pairs, step)
        return {f"eval_{name}": found[name] for name in ("loss", "accuracy", "margin")}

    metrics = Training("reward", settings, run).fit(
        model, pairs, step, evaluate=evaluate, shown=("loss", "accuracy"), dropout=False
    )
    save_model(model, run.stage("reward"), tokenizer_of(run, "reward"))
    write_json(run.stage("reward") / "accuracy.json", accuracy_by_reason(model, eval_pairs))
    metrics |= bad.metrics() | {"pairs": len(pairs.pairs), "eval_pairs": len(eval_pairs.pairs)}
    return metrics | {name: metrics[f"eval_{name}"] for name in ("accuracy", "margin")}


def pair_scores(model: RewardModel, batch: PairBatch) -> Float[Tensor, " N"]:
    """The scores of all 2B completions of a batch, the chosen ones first."""
    device = model.score.weight.device
    input_ids, attention_mask = map(torch.from_numpy, (batch.input_ids, batch.attention_mask))
    return model(input_ids.to(device), attention_mask.to(device))


@torch.no_grad()
def accuracy_by_reason(model: RewardModel, pairs: PairBatches) -> dict[str, list[int]]:
    """For each flaw of a rejected completion: how many pairs are in the right order, and of how many."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for batch in pairs.one_pass():
        chosen, rejected = pair_scores(model, batch).chunk(2)
        for index, right in zip(batch.indices, (chosen > rejected).tolist(), strict=True):
            count = counts[pairs.reasons[index] or "pairs"]
            count[0], count[1] = count[0] + right, count[1] + 1
    return dict(sorted(counts.items()))
