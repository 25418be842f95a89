"""Levels 2 and 3, float64: every formula and every block, in its output and in the gradient of every input and parameter.

Formulas are compared in their plain versions. That fused ones equal these is tested in each level (tests/v3/test_autograd_operations.py);
modules, and whole models in test_v3_transformer.py, are compared as they run by default, fused.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from shared_data.model_files.config import ModelConfig
from shared_data.model_files.rope import rotary_frequencies
from tests.parity.arrays import array, integers
from tests.parity.recorder import ParityRecorder
from v2_handwritten.models import log_probs as log_probs2
from v2_handwritten.models import packing as packing2
from v2_handwritten.models import transformer as transformer2
from v2_handwritten.models.blocks import attention as attention2
from v2_handwritten.models.blocks import attention_mask as attention_mask2
from v2_handwritten.models.blocks import cross_entropy as cross_entropy2
from v2_handwritten.models.blocks import embeddings as embeddings2
from v2_handwritten.models.blocks import feed_forward as feed_forward2
from v2_handwritten.models.blocks import linear as linear2
from v2_handwritten.models.blocks import normalization as normalization2
from v2_handwritten.models.blocks import rope as rope2
from v2_handwritten.models.blocks import transformer_block as transformer_block2
from v3_numpy_deep.autograd import Module, Tensor
from v3_numpy_deep.models import log_probs as log_probs3
from v3_numpy_deep.models import packing as packing3
from v3_numpy_deep.models import transformer as transformer3
from v3_numpy_deep.models.blocks import attention as attention3
from v3_numpy_deep.models.blocks import attention_mask as attention_mask3
from v3_numpy_deep.models.blocks import cross_entropy as cross_entropy3
from v3_numpy_deep.models.blocks import embeddings as embeddings3
from v3_numpy_deep.models.blocks import feed_forward as feed_forward3
from v3_numpy_deep.models.blocks import linear as linear3
from v3_numpy_deep.models.blocks import normalization as normalization3
from v3_numpy_deep.models.blocks import rope as rope3
from v3_numpy_deep.models.blocks import transformer_block as transformer_block3

# The largest measured errors are 9e-16 and 7e-15. The exact gelu ends at 1.1e-14: level 3 sums a series for erf.
TOLERANCES = {"output": 8e-15, "gradient": 5e-14, "gelu": 8e-14}

B, T, C = 2, 70, 32  # T is longer than level 3's attention tile
DOCUMENTS = np.array([[0] * 30 + [1] * 40, [0] * 66 + [1] * 4])
BRANCHES = np.array([[0] * 30 + [0] * 10 + [1] * 20 + [2] * 10, [0] * 70])
POSITIONS = np.array([[*range(30), *range(40)], [*range(66), *range(4)]])
IDS, TARGETS = integers(1, 96, B, T), np.where(np.arange(T) < 5, -100, integers(2, 96, T))
X = array(1, B, T, C)
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
# What differs between the levels, side by side: modules, and how an array that needs no gradient is written.
LEVEL2: dict[str, Any] = {
    "transformer": transformer2,
    "log_probs": log_probs2,
    "packing": packing2,
    "attention": attention2,
    "attention_mask": attention_mask2,
    "cross_entropy": cross_entropy2,
    "embeddings": embeddings2,
    "feed_forward": feed_forward2,
    "linear": linear2,
    "normalization": normalization2,
    "rope": rope2,
    "transformer_block": transformer_block2,
    "constant": torch.from_numpy,
    "float64": torch.float64,
}
LEVEL3: dict[str, Any] = {
    "transformer": transformer3,
    "log_probs": log_probs3,
    "packing": packing3,
    "attention": attention3,
    "attention_mask": attention_mask3,
    "cross_entropy": cross_entropy3,
    "embeddings": embeddings3,
    "feed_forward": feed_forward3,
    "linear": linear3,
    "normalization": normalization3,
    "rope": rope3,
    "transformer_block": transformer_block3,
    "constant": lambda x: x,
    "float64": np.float64,
}


def config(**values: Any) -> ModelConfig:
    defaults = {"vocab_size": 96, "hidden_size": C, "intermediate_size": 48, "num_attention_heads": 4}
    return ModelConfig(**defaults | values)


def rotary(level: dict[str, Any], **values: Any) -> tuple[Any, Any]:
    frequencies = rotary_frequencies(config(**values))
    return level["rope"].rotary_tables(frequencies, level["constant"](POSITIONS), level["float64"])


def mask_of(kind: str, level: dict[str, Any]) -> Any:
    packing, options = level["packing"].Packing, {}
    if kind == "documents":
        options["packing"] = packing.from_documents(level["constant"](DOCUMENTS))
    if kind == "branches":
        options["packing"] = packing(level["constant"](DOCUMENTS), level["constant"](BRANCHES))
    if kind == "padding":  # on the right: every query keeps at least itself or an earlier key
        real = (np.arange(T) < np.array([[70], [50]])).astype(np.int64)
        options["attention_mask"] = level["constant"](real)
    return level["attention_mask"].AttentionMask(T, T, **options)


def shared(level: dict[str, Any]) -> Any:
    return level["attention"].SharedInputs(mask=mask_of("documents", level), rotary=rotary(level))


def attention_case(K: int, kind: str, D: int = 8) -> tuple[Callable, list[np.ndarray]]:
    inputs = [array(1, B, 4, T, D), array(2, B, K, T, D), array(3, B, K, T, D)]
    return lambda level, *qkv: level["attention"].causal_attention(*qkv, mask_of(kind, level)), inputs


def function(module: str, name: str, *constants: Any) -> Callable:
    """A function of the blocks applied to the inputs and then to constants."""
    return lambda level, *inputs: getattr(level[module], name)(
        *inputs, *(level["constant"](c) if isinstance(c, np.ndarray) else c for c in constants)
    )


HEADS = [array(4, B, 4, T, 8)]
FUNCTIONS: dict[str, tuple[Callable, list[np.ndarray]]] = {
    "linear": (function("linear", "linear"), [X, array(2, 5, C), array(3, 5)]),
    "linear without bias": (function("linear", "linear"), [X, array(2, 5, C)]),
    "embed": (function("embeddings", "embed", IDS), [array(1, 96, C)]),
    "layer_norm": (function("normalization", "layer_norm", 1e-5), [X, array(2, C), array(3, C)]),
    "rms_norm": (function("normalization", "rms_norm", 1e-5), [X, array(2, C)]),
    "gelu_new": (function("feed_forward", "gelu_new"), [3 * X]),
    "gelu": (function("feed_forward", "gelu"), [3 * X]),
    "silu": (function("feed_forward", "silu"), [3 * X]),
    "swiglu": (function("feed_forward", "swiglu"), [3 * X]),
    "apply_rotary": (lambda level, x: level["rope"].apply_rotary(x, *rotary(level)), HEADS),
    "apply_rotary, llama3": (
        lambda level, x: level["rope"].apply_rotary(x, *rotary(level, rope_scaling=LLAMA3)),
        HEADS,
    ),
    "cross_entropy": (function("cross_entropy", "cross_entropy", TARGETS), [array(1, T, 96, scale=3.0)]),
    "linear_cross_entropy": (
        function("cross_entropy", "linear_cross_entropy", TARGETS),
        [array(1, T, C), array(2, 96, C)],
    ),
    "selected_log_probs": (
        function("log_probs", "selected_log_probs", IDS, 0.7),
        [array(1, B, T, 96, scale=3.0)],
    ),
    "linear_log_probs": (
        function("log_probs", "linear_log_probs", IDS[0], 0.7),
        [array(1, T, C), array(2, 96, C)],
    ),
    "causal_attention, MHA": attention_case(4, "causal"),
    "causal_attention, GQA": attention_case(2, "documents"),
    "causal_attention, MQA": attention_case(1, "padding"),
    "causal_attention, D = 2": attention_case(1, "branches", 2),
}

MODULES: dict[str, Callable] = {
    "Linear": lambda level: level["linear"].Linear(C, 5),
    "Conv1D": lambda level: level["linear"].Conv1D(C, 5),
    "LayerNorm": lambda level: level["normalization"].LayerNorm(C),
    "RMSNorm": lambda level: level["normalization"].RMSNorm(C),
    "Gpt2FeedForward": lambda level: level["feed_forward"].Gpt2FeedForward(config(model_type="gpt2")),
    "LlamaFeedForward": lambda level: level["feed_forward"].LlamaFeedForward(config(mlp_bias=True)),
    "Gpt2Attention": lambda level: level["attention"].Gpt2Attention(config(model_type="gpt2"), 0),
    "LlamaAttention": lambda level: level["attention"].LlamaAttention(
        config(num_key_value_heads=2, attention_bias=True), 0
    ),
    "Gpt2Block": lambda level: level["transformer_block"].Gpt2Block(config(model_type="gpt2"), 0),
    "LlamaBlock": lambda level: level["transformer_block"].LlamaBlock(config(num_key_value_heads=1), 0),
}


def compare(parity: ParityRecorder, component: str, quantities: dict[str, tuple[Any, Any]]) -> None:
    for quantity, (actual, expected) in quantities.items():
        kind = "gradient" if quantity.startswith("grad") else "output"
        parity(
            component=component,
            quantity=quantity,
            levels="v2-v3",
            actual=actual,
            expected=expected,
            tolerance=TOLERANCES.get(component, TOLERANCES[kind]),
        )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_and_gradients_of_its_inputs(parity: ParityRecorder, name: str) -> None:
    operation, inputs = FUNCTIONS[name]
    theirs = [torch.from_numpy(x.copy()).requires_grad_() for x in inputs]
    ours = [Tensor(x.copy(), requires_grad=True) for x in inputs]
    expected, actual = operation(LEVEL2, *theirs), operation(LEVEL3, *ours)
    weights = np.asarray(array(9, *actual.shape))
    expected.backward(torch.from_numpy(weights.copy()))
    actual.backward(weights)
    gradients = {f"grad {i}": (a.grad, b.grad) for i, (a, b) in enumerate(zip(ours, theirs, strict=True))}
    compare(parity, name, {"output": (actual, expected)} | gradients)


@pytest.mark.parametrize("name", MODULES)
def test_module_and_gradients_of_its_input_and_parameters(parity: ParityRecorder, name: str) -> None:
    theirs, ours = MODULES[name](LEVEL2).double(), MODULES[name](LEVEL3).to(np.float64)
    state = {
        key: array(i, *value.shape, scale=0.5) for i, (key, value) in enumerate(theirs.state_dict().items())
    }
    theirs.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    ours.load_state_dict(state)
    x2, x3 = torch.from_numpy(X.copy()).requires_grad_(), Tensor(X.copy(), requires_grad=True)
    needs_shared = name.endswith(("Attention", "Block"))
    expected = theirs(x2, shared(LEVEL2)) if needs_shared else theirs(x2)
    actual = ours(x3, shared(LEVEL3)) if needs_shared else ours(x3)
    weights = array(9, *actual.shape)
    expected.backward(torch.from_numpy(weights.copy()))  # level 2 may write into it
    actual.backward(weights)
    own: Module = ours
    gradients = {
        f"grad {key}": (dict(own.named_parameters())[key].grad, p.grad)
        for key, p in theirs.named_parameters()
    }
    compare(parity, name, {"output": (actual, expected), "grad x": (x3.grad, x2.grad)} | gradients)


@pytest.mark.parametrize("scaling", [None, {"rope_type": "linear", "factor": 4.0}, LLAMA3])
def test_rotary_tables(parity: ParityRecorder, scaling: dict | None) -> None:
    for quantity, position in (("cos", 0), ("sin", 1)):
        tables = [rotary(level, rope_scaling=scaling, rope_theta=5e5)[position] for level in (LEVEL3, LEVEL2)]
        compare(parity, "rotary_tables", {quantity: (tables[0], tables[1])})


@pytest.mark.parametrize("kind", ["causal", "documents", "branches", "padding"])
def test_masks_are_the_same(kind: str) -> None:
    ours, theirs = mask_of(kind, LEVEL3), mask_of(kind, LEVEL2)
    np.testing.assert_array_equal(ours.allowed(), theirs.allowed().numpy())
    np.testing.assert_array_equal(ours.additive(np.float64), theirs.additive(torch.float64).numpy())
