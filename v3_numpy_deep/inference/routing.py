"""Which experts a model sends the tokens of a text to. What is counted from it: shared_data/evaluation/expert_reading.py.

Level 1 has no such file: it would need hooks. Level 2: the same over torch. Theory: shared_data/story_world/segments.md.

    chosen_experts(model, tokenizer.encode("Once upon a time"))  # [layers, T, k]
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from v3_numpy_deep.autograd import Array, no_grad
from v3_numpy_deep.models.blocks.mixture_of_experts import Routing
from v3_numpy_deep.models.transformer import Transformer


def chosen_experts(model: Transformer, ids: Sequence[int]) -> Int[Array, "layers T k"]:
    """The k experts of each token, in each layer that has experts, without dropout; the model is left as it was.

    Raises `UserError` for more ids than the model has positions.
    """
    was_training = model.training
    routings: list[Routing] = []
    with no_grad():
        model.eval().hidden_states(np.array([ids]), routings=routings)
    model.train(was_training)
    return np.stack([routing.experts for routing in routings])
