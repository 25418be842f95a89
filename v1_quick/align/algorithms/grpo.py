"""Group relative policy optimization: `trl.GRPOTrainer` (Shao et al. 2024, "DeepSeekMath").

The library has no function for the loss: it is computed inside the trainer, from what `GRPOConfig` says. Where the pieces
of levels 2 and 3 are found in TRL 1.12:

| levels 2 and 3 | `GRPOTrainer` | `GRPOConfig` |
|---|---|---|
| `group_advantages(…, group_size, scale_rewards)` | `_generate_and_score_completions` | `num_generations`, `scale_rewards` |
| `kl_estimate`, `beta`, `unbiased_kl` | `_compute_loss`, `per_token_kl` | `beta`, `use_bias_correction_kl` |
| `grpo_loss(…, epsilon_low, epsilon_high)` | `_compute_loss` | `epsilon`, `epsilon_high` |
| `loss_type`, `max_reply_length` | `_compute_loss` | `loss_type`, `max_completion_length` |
| log-probabilities, divided by the temperature | `_get_per_token_logps_and_entropies` | `temperature` |

tests/parity/test_grpo.py calls these methods and compares. Theory: v2_handwritten/align/algorithms/grpo.md.

    python -c "from trl import GRPOConfig; print(GRPOConfig(output_dir='runs/grpo', loss_type='dr_grpo').beta)"
"""

LOSS_TYPES = (
    "grpo",
    "bnpo",
    "dr_grpo",
    "dapo",
)  # of those the library knows, the ones levels 2 and 3 write by hand
