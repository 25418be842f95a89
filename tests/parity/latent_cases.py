"""Small models with latent attention and indexers, at all levels, for tests/parity/test_latent_attention.py and test_sparse_indexer.py."""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from shared_data.model_files.config import ModelConfig
from shared_data.model_files.initialization import initial_weights, is_buffer
from shared_data.model_files.rope import rotary_frequencies
from tests.parity.arrays import array, integers
from tests.parity.recorder import ParityRecorder
from v2_handwritten.inference.kv_cache import KVCache
from v2_handwritten.models.blocks.attention import SharedInputs
from v2_handwritten.models.blocks.attention_mask import AttentionMask
from v2_handwritten.models.blocks.rope import rotary_tables
from v2_handwritten.models.packing import Packing
from v2_handwritten.models.transformer import Transformer
from v3_numpy_deep.autograd import Tensor, no_grad
from v3_numpy_deep.inference.kv_cache import KVCache as ArrayCache
from v3_numpy_deep.models.blocks.attention import SharedInputs as ArrayShared
from v3_numpy_deep.models.blocks.attention_mask import AttentionMask as ArrayMask
from v3_numpy_deep.models.blocks.rope import rotary_tables as array_rotary_tables
from v3_numpy_deep.models.packing import Packing as ArrayPacking
from v3_numpy_deep.models.transformer import Transformer as ArrayTransformer

_SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "eos_token_id": 3,
}
_LATENT = _SMALL | {
    "model_type": "deepseek_v3",
    "q_lora_rank": 16,
    "kv_lora_rank": 24,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 6,
    "num_local_experts": 4,
    "moe_intermediate_size": 20,
    "mlp_only_layers": [0],
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "routed_scaling_factor": 2.5,
}
# With so many heads, no key is one that none of them matches: two scores of exactly 0 would be a tie, which is broken differently.
_INDEX = {"index_topk": 9, "index_n_heads": 16, "index_head_dim": 12}
CASES: dict[str, dict[str, Any]] = {
    "deepseek_v3": _LATENT,
    "deepseek_v3, queries not compressed": _LATENT | {"q_lora_rank": None},
    "deepseek_v3, biases": _LATENT | {"attention_bias": True},
    "deepseek_v32": _LATENT | _INDEX | {"model_type": "deepseek_v32"},
}
SPARSE_LLAMA = (
    _SMALL
    | _INDEX
    | {
        "model_type": "sparse_llama",
        "num_key_value_heads": 2,
        "layer_types": ["full_attention", "indexed_attention"],
    }
)


def config_of(case: str) -> ModelConfig:
    """The configuration of a case, `sparse_llama` included."""
    return ModelConfig(**(SPARSE_LLAMA if case == "sparse_llama" else CASES[case]))


def state_of(config: ModelConfig, dtype: Any = np.float64) -> dict[str, np.ndarray]:
    """Weights of a checkpoint; norms are not 1 and biases not 0."""
    state = {name: weight.astype(dtype) for name, weight in initial_weights(config, 0)}
    for seed, (name, weight) in enumerate(state.items()):
        if weight.ndim == 1 and not is_buffer(name):
            weight += array(seed, *weight.shape, scale=0.1, dtype=dtype)
    return state


def models(case: str, kernels: str = "fused") -> tuple[Transformer, ArrayTransformer]:
    """Levels 2 and 3 in float64, with the same weights, in evaluation mode."""
    config = config_of(case)
    state = state_of(config)
    ours, arrays = Transformer(config, kernels).double(), ArrayTransformer(config, kernels)
    ours.load_state_dict(
        {name: torch.from_numpy(weight.copy()) for name, weight in state.items()}, strict=False
    )
    arrays.to(np.float64)
    arrays.load_state_dict(state, strict=False)
    return ours.eval(), arrays.eval()


def library_model(case: str) -> torch.nn.Module:
    """transformers' model with the same weights; it computes the softmax as a formula."""
    config = config_of(case)
    settings = AutoConfig.for_model(**config.to_hf(), experts_implementation="eager")
    settings._attn_implementation = "eager"
    library = AutoModelForCausalLM.from_config(settings).double()
    state = {name: torch.from_numpy(weight.copy()) for name, weight in state_of(config).items()}
    missing, unknown = library.load_state_dict(state, strict=False)
    assert not unknown
    assert missing in ([], ["lm_head.weight"])
    return library.eval()


def token_ids(B: int = 2, T: int = 40, seed: int = 5) -> np.ndarray:
    """Token ids, the same at every level."""
    return integers(seed, 96, B, T)


DOCUMENTS = np.array([[0] * 25 + [1] * 45, [0] * 61 + [1] * 9])
BRANCHES = np.array([[0] * 25 + [0] * 15 + [1] * 20 + [2] * 10, [0] * 70])


def mask_of(kind: str) -> tuple[AttentionMask, ArrayMask]:
    """Masks of 2 rows of 70 tokens at both levels: plain causal, packed documents, branches of a prefix, padding on the left."""
    if kind == "causal":
        return AttentionMask(70, 70), ArrayMask(70, 70)
    if kind == "padding":
        real = np.arange(70) >= np.array([[0], [20]])
        return AttentionMask(70, 70, attention_mask=torch.from_numpy(real)), ArrayMask(
            70, 70, attention_mask=real
        )
    ids = (DOCUMENTS, BRANCHES) if kind == "branches" else (DOCUMENTS,)
    packing = Packing(*(torch.from_numpy(each) for each in ids))
    return AttentionMask(70, 70, packing=packing), ArrayMask(70, 70, packing=ArrayPacking(*ids))


def shared_inputs(
    config: ModelConfig, kind: str = "causal", **options: Any
) -> tuple[SharedInputs, ArrayShared]:
    """What a block of 70 tokens needs, at both levels."""
    masks, positions = mask_of(kind), np.arange(70)[None]
    frequencies = rotary_frequencies(config)
    tables = rotary_tables(frequencies, torch.from_numpy(positions), torch.float64)
    array_tables = array_rotary_tables(frequencies, positions, np.float64)
    return SharedInputs(masks[0], tables, **options), ArrayShared(masks[1], array_tables, **options)


def cached_logits(case: str, ids: np.ndarray, chunks: list[int], **inputs: np.ndarray) -> list[np.ndarray]:
    """Logits of both levels where the tokens come in chunks of these lengths, each after the cache of those before."""
    ours, arrays = models(case)
    B, T = ids.shape
    cache, array_cache = KVCache(ours.config, B, T, torch.float64), ArrayCache(ours.config, B, T, np.float64)
    ends = np.cumsum([0, *chunks])
    found: list[list[np.ndarray]] = [[], []]
    with torch.inference_mode(), no_grad():
        for begin, end in pairwise(ends):
            part = {}
            if inputs:
                part = {
                    "position_ids": inputs["position_ids"][:, begin:end],
                    "attention_mask": inputs["attention_mask"][:, :end],
                }
            tensors = {name: torch.from_numpy(value) for name, value in part.items()}
            found[0].append(ours(torch.from_numpy(ids[:, begin:end]), cache=cache, **tensors).numpy())
            found[1].append(arrays(ids[:, begin:end], cache=array_cache, **part).data)
    return [np.concatenate(level, 1) for level in found]


def set_kernels(module: Any, kernels: str) -> None:
    """The choice of kernels for a module and all below it."""
    for each in module.modules():
        if hasattr(each, "kernels"):
            each.kernels = kernels


def compare_levels(
    parity: ParityRecorder,
    component: str,
    ours: Any,
    theirs: Any,
    config: ModelConfig,
    kind: str,
    kernels: str,
) -> None:
    """An attention module of levels 3 and 2: outputs where they are wanted, gradients of x and of the parameters."""
    state = {
        name: array(i, *value.shape, scale=0.5) for i, (name, value) in enumerate(theirs.state_dict().items())
    }
    theirs.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    ours.load_state_dict(state)
    for module in (ours, theirs):
        set_kernels(module, kernels)
    # A query that sees no key has no right answer.
    keep = (
        np.arange(140).reshape(2, 70) % 3 > 0 if kind != "padding" else np.arange(70) >= np.array([[0], [20]])
    )
    x = array(7, 2, 70, config.hidden_size)
    x2, x3 = torch.from_numpy(x).requires_grad_(), Tensor(x, requires_grad=True)
    shared2, shared3 = shared_inputs(config, kind)
    expected, actual = theirs(x2, shared2, torch.from_numpy(keep)), ours(x3, shared3, keep)
    direction = array(9, *actual.shape)
    expected.backward(torch.from_numpy(direction))
    actual.backward(direction)
    gradients = dict(ours.named_parameters())
    pairs = {
        f"grad {name}": (gradients[name].grad, p.grad)
        for name, p in theirs.named_parameters()
        if p.grad is not None
    }
    assert {name for name, p in gradients.items() if p.grad is None} == {
        n for n in gradients if n.startswith("indexer.")
    }
    parity.each(
        {"output": (actual, expected), "grad x": (x3.grad, x2.grad)} | pairs,
        component=component,
        levels="v3-v2",
        tolerance=5e-14,
    )
