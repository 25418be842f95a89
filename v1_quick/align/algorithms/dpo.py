"""Direct preference optimization: trl's `DataCollatorForPreference`; the loss is inside `DPOTrainer.compute_loss`.

Of the trainer's many loss types, levels 2 and 3 have sigmoid, hinge and ipo by hand, and label smoothing, which the trainer
offers with aot only; ../dpo_train.py has it for sigmoid too.

    python -c "from v1_quick.align.algorithms.dpo import *; print(preference_batch([([1, 2], [3, 4], [5])], pad_id=0, max_length=8))"
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from shared_data.preference_pairs import Pair, check_pairs
from v1_quick.align.algorithms.log_probabilities import reply_log_probabilities
from v1_quick.models.transformer import Transformer


@dataclass(frozen=True)
class PreferenceBatch:
    """B pairs in 2B rows, first the chosen replies, then the rejected ones, each behind its prompt; padded on the right."""

    input_ids: np.ndarray
    reply_mask: np.ndarray  # 1 on the tokens of the reply
    attention_mask: np.ndarray  # 1 on prompt and reply


def preference_batch(
    pairs: Sequence[Pair], pad_id: int, max_length: int, names: Sequence[str] | None = None
) -> PreferenceBatch:
    """Put pairs of (prompt ids, chosen ids, rejected ids) into arrays; what exceeds `max_length` is cut off at the end."""
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    check_pairs(pairs, max_length, names)
    collator = DataCollatorForPreference(pad_token_id=pad_id, max_length=max_length)
    batch = collator(
        [
            {"prompt_ids": list(prompt), "chosen_ids": list(chosen), "rejected_ids": list(rejected)}
            for prompt, chosen, rejected in pairs
        ]
    )
    return PreferenceBatch(
        *(batch[name].numpy() for name in ("input_ids", "completion_mask", "attention_mask"))
    )


def sequence_log_probabilities(
    model: Transformer, input_ids: Tensor, reply_mask: Tensor, attention_mask: Tensor | None = None
) -> Tensor:
    """log π(reply | prompt) of each row: the sum over the tokens of the reply, at temperature 1."""
    return reply_log_probabilities(model, input_ids, reply_mask, attention_mask).sum(-1)
