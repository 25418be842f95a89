"""The stage `dpo`: a policy from preference pairs, without a reward model and without sampling (Rafailov et al. 2023).

The reference never changes, so its log-probabilities of the pairs may be computed once, before the first step
(`precompute_ref_log_probs`): then no second forward pass is made for each batch.

Level 1: trl's `DPOTrainer`. Level 3: the same over its own autograd, the pairs shared out among threads.

    uv run v2 dpo --config tiny
"""

import torch
from jaxtyping import Float
from torch import Tensor

from shared_data.alignment.pair_batches import PairBatch, PairBatches, evaluate_pairs, open_pair_batches
from shared_data.alignment.policy_evaluation import evaluate_policy
from shared_data.alignment.prompts import evaluation_prompts
from shared_data.alignment.rewards import open_reward
from shared_data.corpus.bad_records import BadRecords
from shared_data.model_names import tokenizer_of
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from shared_data.training.training_run import Metrics
from v2_handwritten.align.algorithms.dpo import dpo_loss
from v2_handwritten.align.policy import as_policy
from v2_handwritten.inference.loading import load_to_train
from v2_handwritten.models.checkpoint import save_model
from v2_handwritten.models.log_probs import completion_log_probs
from v2_handwritten.models.transformer import Transformer, frozen_copy
from v2_handwritten.pretrain.components.training import Training


def dpo(settings: Settings, run: RunFolder) -> Metrics:
    """Align the tuned model of the run with preference pairs; returns the metrics of the stage.

    Raises `UserError` for a record that is no pair or does not fit, a missing checkpoint, a diverged loss.
    """
    section = settings.dpo
    policy, tokenizer = load_to_train(settings, run, "dpo")
    reference = frozen_copy(policy)
    positions = policy.config.max_position_embeddings
    bad = BadRecords(section.on_bad_record)
    pairs, eval_pairs = open_pair_batches(settings, "dpo", tokenizer, positions, bad)
    # What a completion of a user's own prompt is worth is not known.
    on_stories = section.source == "story_world"
    prompts = evaluation_prompts(settings, "dpo", tokenizer, positions) if on_stories else []
    eval_reference = reference_log_probs(reference, eval_pairs)
    train_reference = reference_log_probs(reference, pairs) if section.precompute_ref_log_probs else None

    def loss_of(batch: PairBatch, fixed: Float[Tensor, " N"]) -> tuple[Tensor, Metrics]:
        chosen, rejected = pair_log_probs(policy, batch).chunk(2)
        reference_chosen, reference_rejected = fixed.chunk(2)
        lengths = torch.from_numpy(batch.completion_lengths).to(chosen.device)
        return dpo_loss(
            chosen,
            rejected,
            reference_chosen,
            reference_rejected,
            section.beta,
            section.loss_type,
            section.label_smoothing,
            *lengths.chunk(2),
        )

    def step(batch: PairBatch) -> tuple[Tensor, Metrics]:
        if train_reference is not None:
            return loss_of(batch, train_reference[batch.indices].T.flatten())
        with torch.no_grad():
            fixed = pair_log_probs(reference, batch)
        return loss_of(batch, fixed)

    @torch.no_grad()
    def evaluate() -> Metrics:
        policy.eval()
        found = evaluate_pairs(
            eval_pairs, lambda batch: loss_of(batch, eval_reference[batch.indices].T.flatten())
        )
        return {"eval_loss": found["loss"], "eval_accuracy": found["rewards/accuracies"]}

    metrics = Training("dpo", settings, run).fit(
        policy, pairs, step, evaluate=evaluate, shown=("loss", "rewards/accuracies"), dropout=False
    )
    save_model(policy, run.stage("dpo"), tokenizer_of(run, "dpo"))
    metrics |= bad.metrics() | {"pairs": len(pairs.pairs), "accuracy": metrics["eval_accuracy"]}
    if not prompts:
        return metrics
    policies = as_policy(policy, tokenizer), as_policy(reference, tokenizer)
    return metrics | evaluate_policy(settings, run, "dpo", *policies, prompts, open_reward("story_world"))


def pair_log_probs(model: Transformer, batch: PairBatch) -> Float[Tensor, " N"]:
    """log p(completion | prompt) of all 2B completions of a batch, in nats, the chosen ones first."""
    device = model.lm_head.weight.device
    arrays = (batch.input_ids, batch.completion_mask, batch.attention_mask)
    input_ids, completion_mask, attention_mask = (torch.from_numpy(array).to(device) for array in arrays)
    return completion_log_probs(model, input_ids, completion_mask, attention_mask).sum(-1)


@torch.no_grad()
def reference_log_probs(reference: Transformer, pairs: PairBatches) -> Float[Tensor, "pairs 2"]:
    """`pair_log_probs` of all pairs, a row for each."""
    return torch.cat([pair_log_probs(reference, batch).view(2, -1).T for batch in pairs.one_pass()])
