"""Proximal policy optimization of replies: `trl.experimental.ppo.PPOTrainer` (Schulman et al. 2017; Ziegler et al. 2019).

The library has a function for whitening only. Everything else happens inside `PPOTrainer.train()`, under the names of the
comments there; `PPOConfig` holds the numbers:

| levels 2 and 3 | in `PPOTrainer.train()` | `PPOConfig` |
|---|---|---|
| `value_mask` | `padding_mask_p1`, negated | |
| `penalize_missing_end` | "Response Processing 3" | `missing_eos_penalty` |
| `token_kl`, `token_rewards` | "4. compute rewards" | `kl_coef`, `kl_estimator` |
| `whiten` | `masked_whiten` | `whiten_rewards` |
| `generalized_advantages` | "6. compute advantages and returns" | `gamma`, `lam` |
| `policy_loss` | `pg_loss` | `cliprange` |
| `value_loss` | `vf_loss` | `cliprange_value` |
| `ppo_minibatch_loss` | `loss` | `vf_coef` |

tests/parity/test_ppo.py runs an update of the trainer and compares. Theory: v2_handwritten/align/algorithms/ppo.md.

    python -c "import torch; from v1_quick.align.algorithms.ppo import *; print(whiten(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[1, 1, 0]])))"
"""

import torch
from torch import Tensor


def whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Mean 0 (unless `shift_mean` is off) and variance 1 over the places of [B, T] that count; 0 elsewhere."""
    from trl.experimental.ppo.ppo_trainer import masked_whiten  # takes seconds to import

    # The mask in the type of x, or the library would round its n / (n - 1) to float32.
    return torch.masked_fill(masked_whiten(x, mask.to(x.dtype), shift_mean), ~mask.bool(), 0)
