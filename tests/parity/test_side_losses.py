"""What a model adds to its loss in training: the balance of experts, as the library adds it, and what indexers learn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import v3_numpy_deep.models.checkpoint as v3
from shared_data.model_files.config import ModelConfig
from shared_data.training.expert_load import expert_shares, load_metrics
from tests.parity.family_cases import batch, library_model
from tests.parity.recorder import ParityRecorder
from v2_handwritten.models.checkpoint import load_model
from v2_handwritten.models.transformer import Transformer, new_model
from v2_handwritten.pretrain.components.training import balance_experts
from v3_numpy_deep.models.transformer import new_model as new_array_model
from v3_numpy_deep.pretrain.components.training import balance_experts as balance_array_experts

COEFFICIENT = 0.5  # five hundred times the usual: the loss must be seen in every gradient
INDEXED: dict[str, Any] = {
    "model_type": "sparse_llama",
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "layer_types": ["indexed_attention"] * 2,
    "index_topk": 8,
    "index_n_heads": 16,
    "index_head_dim": 8,
}
ROUTED: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_local_experts": 4,
    "initializer_range": 0.2,
}


def in_a_row(gradients: dict[str, Any]) -> np.ndarray:
    """All numbers of all gradients, in the order of their names."""
    return np.concatenate([np.asarray(gradients[name]).ravel() for name in sorted(gradients)])


def test_shares_of_experts_by_layer_and_the_busiest_one() -> None:
    metrics = load_metrics([[3, 1], [2, 2]])
    assert metrics == {
        "expert_load/0/0": 0.75,
        "expert_load/0/1": 0.25,
        "expert_load/1/0": 0.5,
        "expert_load/1/1": 0.5,
        "expert_load_max": 1.5,  # 3 of 4 where 2 would be balanced
    }
    assert expert_shares(metrics | {"loss": 3.0}) == {0: [0.75, 0.25], 1: [0.5, 0.5]}
    assert load_metrics([]) == {}


@pytest.mark.parametrize("case", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_loss_with_balance_and_every_gradient_equal_the_library(
    parity: ParityRecorder, tmp_path: Path, case: str
) -> None:
    """The library's default: cross-entropy where labels count, and the balance of the experts over all tokens of all layers."""
    library = library_model(case)
    library.config.router_aux_loss_coef = library.router_aux_loss_coef = COEFFICIENT
    library.save_pretrained(tmp_path)
    library.double()
    ids, labels = batch()
    # `shift_labels` as they stand: labels[t] is the token after t.
    output = library(ids, labels=labels, shift_labels=labels, output_router_logits=True, use_cache=False)
    output.loss.backward()
    expected = {name: parameter.grad for name, parameter in library.named_parameters()}

    ours, arrays = load_model(tmp_path).double().train(), v3.load_model(tmp_path).to(np.float64).train()
    plain = ours.loss(ids, labels).item()
    for model in (ours, arrays):
        model.balances_experts = True
    for checkpointing in (False, True):
        ours.gradient_checkpointing = checkpointing
        ours.zero_grad()
        loss = ours.loss(ids, labels)
        loss.backward()
        assert loss.item() > plain + COEFFICIENT  # k = 2 where all are equally busy
        name = f"balance of experts, {case}{', checkpointed' if checkpointing else ''}"
        parity(
            component=name, quantity="loss", levels="v2-v1", actual=loss, expected=output.loss, tolerance=1e-6
        )
        parity(
            component=name,
            quantity="every gradient",
            levels="v2-v1",
            actual=in_a_row({n: p.grad for n, p in ours.named_parameters()}),
            expected=in_a_row(expected),
            tolerance=2e-6,
        )
    array_loss = arrays.loss(ids.numpy(), labels.numpy())
    array_loss.backward()
    parity(
        component=f"balance of experts, {case}",
        quantity="every gradient",
        levels="v3-v2",
        actual=in_a_row({n: p.grad for n, p in arrays.named_parameters()}),
        expected=in_a_row({n: p.grad for n, p in ours.named_parameters()}),
        tolerance=1e-14,
    )
    assert np.array_equal(np.asarray(arrays.expert_loads), ours.expert_loads.numpy())
    assert np.asarray(arrays.expert_loads).sum(axis=1).tolist() == [2 * ids.numel()] * len(
        arrays.expert_loads
    )


def test_a_step_moves_the_biases_of_sigmoid_routers_alike(parity: ParityRecorder) -> None:
    """By the speed, up for experts with too few tokens, down for those with too many."""
    config = ModelConfig(**ROUTED)
    ours, arrays = new_model(config).double().train(), new_array_model(config).to(np.float64).train()
    ids, labels = batch()
    ours.loss(ids, labels)
    arrays.loss(ids.numpy(), labels.numpy())
    balance_experts(ours, 0.25)
    balance_array_experts(arrays, 0.25)
    biases = {name: tensor for name, tensor in ours.state_dict().items() if name.endswith("correction_bias")}
    state = arrays.state_dict()
    assert len(biases) == 2
    for (name, bias), load in zip(biases.items(), ours.expert_loads, strict=True):
        assert bias.tolist() == (0.25 * torch.sign(load.double().mean() - load)).tolist()
        assert bias.abs().max() > 0
        parity(
            component="balance by bias",
            quantity="biases after a step",
            levels="v3-v2",
            actual=state[name],
            expected=bias,
            tolerance=1e-15,
        )
    dense = new_model(ModelConfig(vocab_size=96)).train()
    balance_experts(dense, 0.25)  # nothing to do


def indexed_model() -> Transformer:
    """A model with indexers that are trained."""
    model = new_model(ModelConfig(**INDEXED)).double().train()
    model.trains_indexers = True
    return model


@pytest.mark.parametrize("dense", [False, True], ids=["selected", "dense warm-up"])
def test_indexers_learn_from_the_loss_and_nothing_else_does(parity: ParityRecorder, dense: bool) -> None:
    """Their loss adds to the cross-entropy, but its gradient reaches no weight outside of them."""
    ids, labels = batch()
    model, arrays = indexed_model(), new_array_model(ModelConfig(**INDEXED)).to(np.float64).train()
    results = []
    for trains in (False, True):
        model.trains_indexers, model.dense_indexer = trains, dense
        model.zero_grad()
        loss = model.loss(ids, labels)
        loss.backward()
        results.append((loss.item(), {name: p.grad for name, p in model.named_parameters()}))
    (without, untrained), (with_losses, trained) = results
    assert with_losses > without + 1e-3
    for name, gradient in trained.items():
        if ".indexer." in name:
            assert untrained[name] is None
            assert gradient.abs().max() > 0
        else:
            assert torch.equal(gradient, untrained[name])
    model.gradient_checkpointing = True
    model.zero_grad()
    model.loss(ids, labels).backward()
    assert all(torch.equal(p.grad, trained[name]) for name, p in model.named_parameters())
    arrays.trains_indexers, arrays.dense_indexer = True, dense
    arrays.loss(ids.numpy(), labels.numpy()).backward()
    parity(
        component=f"indexers in training, {'dense' if dense else 'selected'}",
        quantity="every gradient",
        levels="v3-v2",
        actual=in_a_row({n: p.grad for n, p in arrays.named_parameters()}),
        expected=in_a_row(trained),
        tolerance=1e-14,
    )


def test_a_dense_warm_up_attends_to_everything_in_training_only() -> None:
    model = indexed_model()
    model.dense_indexer = True
    ids, labels = batch()
    llama = Transformer(ModelConfig(**INDEXED | {"layer_types": ["full_attention"] * 2})).double()
    llama.load_state_dict({k: v for k, v in model.state_dict().items() if ".indexer." not in k})
    model.trains_indexers = False
    assert model.loss(ids, labels).item() == pytest.approx(llama.train().loss(ids, labels).item(), rel=1e-12)
    assert model.eval().loss(ids, labels).item() != pytest.approx(
        llama.eval().loss(ids, labels).item(), rel=1e-6
    )


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "deepseek_v3"])
@pytest.mark.parametrize("kernels", ["plain", "fused"])
def test_experts_without_a_target_cost_nothing_and_give_no_loss(family: str, kernels: str) -> None:
    """A row of a prompt alone, or a thread whose documents have no label that counts: no expert gets a token of the last layer."""
    config = ModelConfig(**ROUTED | {"model_type": family})
    ids, labels = np.zeros((2, 6), np.int64), np.full((2, 6), -100)
    ours, arrays = (
        new_model(config, kernels=kernels).train(),
        new_array_model(config, kernels=kernels).train(),
    )
    losses = ours.loss(torch.from_numpy(ids), torch.from_numpy(labels)), arrays.loss(ids, labels)
    for loss in losses:
        assert loss.item() == 0
        loss.backward()


def test_a_model_of_the_family_without_any_sparse_layer_trains() -> None:
    """`v2 compare` of latent attention alone: deepseek_v3 whose layers are all dense."""
    config = ModelConfig(**ROUTED | {"mlp_only_layers": [0, 1]})
    ids, labels = batch()
    ours, arrays = new_model(config).train(), new_array_model(config).train()
    assert ours.loss(ids, labels).item() == pytest.approx(
        arrays.loss(ids.numpy(), labels.numpy()).item(), rel=1e-5
    )
    assert load_metrics(ours.expert_loads) == {}
