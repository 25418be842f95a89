"""What the parity tests of PPO and GRPO share: log-probabilities on padded replies, a tiny tokenizer for the trainers."""

from typing import Any

import numpy as np
import torch

from tests.parity.arrays import array
from v3_numpy_deep.autograd import Tensor as ArrayTensor

B, T = 4, 7
LENGTHS = (7, 3, 5, 1)  # the first reply fills its row, the last is one token


def reply_mask(lengths: tuple[int, ...] = LENGTHS, width: int = T) -> np.ndarray:
    """1 on the first `length` tokens of each row."""
    return (np.arange(width) < np.array(lengths)[:, None]).astype(np.int64)


def log_probabilities(seed: int, near: np.ndarray | None = None, scale: float = 0.3) -> np.ndarray:
    """Log-probabilities of B × T tokens; `near`: a policy that moved a little from that one. Padding holds numbers too."""
    if near is not None:
        return near + array(seed, B, T, scale=scale)
    return -np.abs(array(seed, B, T)) - 0.1


def both_levels(
    function2: Any, function3: Any, learned: dict[str, np.ndarray], constant: dict[str, Any], **options: Any
) -> list[tuple[float, dict[str, float], dict[str, np.ndarray]]]:
    """Loss, metrics and gradients of `learned`, by a function of level 2 and its twin of level 3."""
    inputs2 = {name: torch.from_numpy(value).clone().requires_grad_() for name, value in learned.items()}
    arrays2 = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in constant.items()}
    loss2, metrics2 = function2(**inputs2, **arrays2, **options)
    loss2.backward()
    inputs3 = {name: ArrayTensor(value.copy(), requires_grad=True) for name, value in learned.items()}
    loss3, metrics3 = function3(**inputs3, **constant, **options)
    loss3.backward()
    gradients2 = {name: tensor.grad.numpy() for name, tensor in inputs2.items()}
    gradients3 = {name: tensor.grad for name, tensor in inputs3.items()}
    return [(loss2.item(), metrics2, gradients2), (loss3.item(), metrics3, gradients3)]


def tiny_tokenizer(vocab_size: int = 96) -> Any:
    """A word is an id: "t5 t7" is [5, 7]; padding is 0, the end of a reply is 3."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({f"t{id}": id for id in range(vocab_size)}, unk_token="t1"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="t0", eos_token="t3", padding_side="left"
    )


def even_tokens(replies: list[list[int]]) -> list[float]:
    """A reward that is easy to learn: the share of even ids."""
    return [sum(id % 2 == 0 for id in reply) / len(reply) for reply in replies]


def compare_weights(parity: Any, component: str, two: Any, three: Any, tolerance: float) -> None:
    """Every parameter of a model of level 2 with its twin of level 3.

    A bias of GPT-2's keys changes no attention weight, so its gradient is rounding and nothing else; Adam, which divides by the
    gradient's size, makes steps of it.
    """
    weights = three.state_dict()
    for name, value in two.state_dict().items():
        parity(
            component=component,
            quantity=f"weight {name}",
            levels="v2-v3",
            actual=value,
            expected=weights[name],
            tolerance=1e-9 if name.endswith("c_attn.bias") else tolerance,
        )
