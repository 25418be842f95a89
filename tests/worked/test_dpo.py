"""Four preference pairs, as in v2_handwritten/align/algorithms/dpo.md."""

import torch

from tests.worked import agrees
from v2_handwritten.align.algorithms.dpo import dpo_loss

PAGE = "v2_handwritten/align/algorithms/dpo.md"

BETA = 0.5
# log π(chosen), log π(rejected), log π_ref(chosen), log π_ref(rejected): what `dpo_loss` takes, a row for each pair.
PAIRS = torch.tensor(
    [
        [-5.0, -6, -5, -6],  # before the first step
        [-4.0, -7, -5, -6],  # learned
        [-6.0, -9, -5, -6],  # both fell
        [-6.0, -5, -5, -6],  # wrong order
    ]
)


def test_log_ratios_and_the_loss_of_each_pair() -> None:
    agrees(PAGE, "log-probabilities", PAIRS)
    chosen, rejected = PAIRS[:, 0] - PAIRS[:, 2], PAIRS[:, 1] - PAIRS[:, 3]
    h = chosen - rejected
    losses = torch.stack([dpo_loss(*pair.split(1), beta=BETA)[0] for pair in PAIRS])
    agrees(PAGE, "pair", torch.stack([chosen, rejected, h, BETA * h, torch.sigmoid(BETA * h), losses], dim=1))
    loss, metrics = dpo_loss(*PAIRS.T, beta=BETA)
    agrees(PAGE, "metric", [[loss], *([value] for value in metrics.values())])


def test_the_gradient_raises_the_chosen_and_lowers_the_rejected_completion() -> None:
    policy = [PAIRS[:, column].clone().requires_grad_() for column in (0, 1)]
    dpo_loss(*policy, PAIRS[:, 2], PAIRS[:, 3], beta=BETA)[0].backward()
    h = PAIRS[:, 0] - PAIRS[:, 2] - PAIRS[:, 1] + PAIRS[:, 3]
    agrees(PAGE, "gradient", torch.stack([torch.sigmoid(-BETA * h), *(p.grad for p in policy)], dim=1))


def test_the_other_losses_of_the_same_pairs() -> None:
    lengths = {"chosen_lengths": torch.tensor([4]), "rejected_lengths": torch.tensor([5])}
    variants = {}, {"label_smoothing": 0.2}, {"loss_type": "hinge"}, {"loss_type": "ipo"} | lengths
    losses = [[dpo_loss(*pair.split(1), beta=BETA, **each)[0] for each in variants] for pair in PAIRS]
    agrees(PAGE, "loss", losses)
