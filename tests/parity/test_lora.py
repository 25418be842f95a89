"""LoRA, rsLoRA, DoRA and whole modules at all levels: outputs, gradients, merged weights; what must not train or drop."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import peft
import pytest
import torch

from shared_data.errors import UserError
from shared_data.model_files.config import ModelConfig
from shared_data.peft.adapted_model import (
    lora_parameters,
    merge_lora,
    merged_state_dict,
    set_adapter,
    unmerge_lora,
)
from shared_data.peft.config import LoraConfig
from shared_data.training.parameter_groups import parameter_groups
from tests.parity.arrays import array
from tests.parity.model_cases import CASES as MODEL_CASES
from tests.parity.model_cases import batch, pair
from tests.parity.peft_cases import inject_peft, peft_parameters
from tests.parity.recorder import ParityRecorder, as_array
from v2_handwritten.models.blocks.linear import Linear
from v2_handwritten.models.peft import lora
from v2_handwritten.models.peft.lora import inject_lora
from v2_handwritten.models.transformer import Transformer
from v2_handwritten.pretrain.components.optimizers import AdamW
from v3_numpy_deep.models.peft import lora as lora3
from v3_numpy_deep.models.transformer import Transformer as Transformer3
from v3_numpy_deep.pretrain.components.optimizers import AdamW as AdamW3

VARIANTS: dict[str, dict[str, Any]] = {
    "LoRA": {"r": 4},
    "rsLoRA": {"r": 4, "lora_alpha": 3.0, "use_rslora": True},
    "DoRA": {"r": 4, "use_dora": True},
    "all-linear": {"r": 3, "target_modules": "all-linear"},
    "DoRA, all-linear": {"r": 3, "target_modules": "all-linear", "use_dora": True},
}
WHOLE: dict[str, dict[str, Any]] = {
    "LoRA, whole embedding": {"r": 4, "modules_to_save": ("embed_tokens",)},
    "DoRA, whole embedding and output matrix": {
        "r": 3,
        "use_dora": True,
        "modules_to_save": ("embed_tokens", "lm_head"),
    },
}
# At most ten times the measured errors. transformers' Llama rotates and normalizes in float32, whatever the model's type.
FLOAT64 = {"logits": 2e-13, "every gradient": 2e-13, "merged weights": 1e-15, "logits when merged": 1e-13}
FLOAT32_ISLANDS = {
    "logits": 2e-5,
    "every gradient": 5e-5,
    "merged weights": 1e-15,
    "logits when merged": 2e-5,
}
WHOLE_FLOAT64 = {
    "logits": 1e-13,
    "every gradient": 2e-13,
    "merged weights": 1e-15,
    "logits when merged": 5e-14,
}
WHOLE_FLOAT32_ISLANDS = {
    "logits": 8e-6,
    "every gradient": 9e-6,
    "merged weights": 1e-15,
    "logits when merged": 8e-6,
}
CASES = ("gpt2", "llama GQA", "llama MQA, biases, D > C/H")
TIED_OR_NOT = ("gpt2", "gpt2 untied, exact gelu", "llama GQA", "llama MHA, untied")
RUNS = [(case, variant) for variant in VARIANTS for case in CASES]
RUNS += [(case, variant) for variant in WHOLE for case in TIED_OR_NOT]


def settings(case: str, variant: str, **more: Any) -> dict[str, Any]:
    """The settings of a variant; GPT-2 calls its layers by other names."""
    values = (VARIANTS | WHOLE)[variant] | more
    if case.startswith("gpt2"):
        values.setdefault("target_modules", ("c_attn", "mlp.c_proj"))
        whole = values.get("modules_to_save", ())
        values["modules_to_save"] = tuple(name.replace("embed_tokens", "wte") for name in whole)
    return values


def adapter_values(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Trained-looking numbers for a parameter of an adapter: after injection B is 0, and A would get no gradient."""
    return array(seed, *shape, scale=0.3) + (1.0 if len(shape) == 1 else 0.0)


def adapted_pair(
    case: str, variant: str, **more: Any
) -> tuple[Transformer, Any, dict[str, torch.nn.Parameter]]:
    """Levels 2 and 1 with the same weights and the same trained adapter, and level 1's adapter parameters by our names."""
    ours, theirs = pair(case)
    values = settings(case, variant, **more)
    inject_lora(ours, LoraConfig(**values), seed=5)
    inject_peft(theirs, LoraConfig(**values), seed=5)
    names = peft_parameters(theirs)
    trainable = {name: p for name, p in ours.named_parameters() if p.requires_grad}
    assert trainable.keys() == names.keys()
    with torch.no_grad():
        for seed, (name, parameter) in enumerate(trainable.items()):
            assert torch.equal(parameter, names[name]), f"{name} starts from other numbers"
            parameter.copy_(torch.from_numpy(adapter_values(tuple(parameter.shape), seed)))
            names[name].copy_(parameter)
    return ours, theirs, names


@pytest.mark.parametrize(("case", "variant"), RUNS)
def test_output_gradients_and_merged_weights_equal_peft(
    parity: ParityRecorder, case: str, variant: str
) -> None:
    ours, theirs, names = adapted_pair(case, variant)
    inputs = batch(case, T=20)
    ours.loss(**inputs).backward()
    theirs.loss(**inputs).backward()
    found = dict(ours.named_parameters())
    rows: dict[str, tuple[Any, Any]] = {
        "logits": (ours(inputs["input_ids"]), theirs(inputs["input_ids"])),
        "every gradient": tuple(
            torch.cat([(p[name].grad / names[name].grad.abs().max()).flatten() for name in names])
            for p in (found, names)
        ),
    }
    merge_lora(ours)
    theirs.library.merge_adapter()
    merged = merged_state_dict(ours)
    base = {
        key.replace(".base_layer.", ".").replace(".modules_to_save.default.", "."): value
        for key, value in theirs.library.get_base_model().state_dict().items()
        if "lora_" not in key and ".original_module." not in key
    }
    assert merged.keys() == base.keys()
    rows["merged weights"] = tuple(
        torch.cat([state[key].flatten() for key in sorted(base)]) for state in (merged, base)
    )
    rows["logits when merged"] = (ours(inputs["input_ids"]), rows["logits"][1])
    doubles, islands = (
        (WHOLE_FLOAT64, WHOLE_FLOAT32_ISLANDS) if variant in WHOLE else (FLOAT64, FLOAT32_ISLANDS)
    )
    tolerances = doubles if case.startswith("gpt2") else islands
    for quantity, (actual, expected) in rows.items():
        parity(
            component=f"{variant}, {case}",
            quantity=quantity,
            levels="v2-v1",
            actual=actual,
            expected=expected,
            tolerance=tolerances[quantity],
        )


def level_3_like(ours: Transformer, case: str, values: dict[str, Any]) -> Transformer3:
    """Level 3's model with the same base and, after an injection of its own, the same trained adapter."""
    model = Transformer3(ModelConfig(**MODEL_CASES[case])).to(np.float64)
    state = ours.state_dict().items()
    plain = {n.replace(".base.", "."): p for n, p in state if ".adapters." not in n and ".copies." not in n}
    model.load_state_dict({name: weight.numpy() for name, weight in plain.items()})
    fresh = Transformer(ours.config).double()
    fresh.load_state_dict(plain)
    inject_lora(fresh, LoraConfig(**values), seed=5)
    lora3.inject_lora(model, LoraConfig(**values), seed=5)
    parameters = dict(model.named_parameters())
    for name, parameter in fresh.named_parameters():
        np.testing.assert_allclose(
            parameters[name].data, parameter.detach(), rtol=1e-15, atol=0, err_msg=name
        )
        assert parameters[name].requires_grad == parameter.requires_grad
    model.load_state_dict({name: weight.numpy() for name, weight in ours.state_dict().items()})
    return model


@pytest.mark.parametrize(("case", "variant"), RUNS)
def test_level_3_equals_level_2_in_float64(parity: ParityRecorder, case: str, variant: str) -> None:
    values = settings(case, variant)
    ours, _, names = adapted_pair(case, variant)
    model = level_3_like(ours, case, values)
    inputs = batch(case, T=20)
    arrays = {name: value.numpy() for name, value in inputs.items()}
    ours.loss(**inputs).backward()
    model.loss(**arrays).backward()
    found, found3 = dict(ours.named_parameters()), dict(model.named_parameters())
    assert all(found3[name].grad is None for name in found3 if name not in names)
    rows: dict[str, tuple[Any, Any]] = {
        "logits": (model(arrays["input_ids"]), ours(inputs["input_ids"])),
        "every gradient": tuple(
            np.concatenate([np.ravel(p[name].grad / found[name].grad.abs().max().item()) for name in names])
            for p in (found3, found)
        ),
    }
    merge_lora(ours)
    merge_lora(model)
    merge_lora(model)
    merged, merged3 = merged_state_dict(ours), merged_state_dict(model)
    assert merged.keys() == merged3.keys()
    rows["merged weights"] = tuple(
        np.concatenate([np.ravel(state[key]) for key in merged]) for state in (merged3, merged)
    )
    rows["logits when merged"] = (model(arrays["input_ids"]), ours(inputs["input_ids"]))
    for quantity, (actual, expected) in rows.items():
        parity(
            component=f"{variant}, {case}",
            quantity=quantity,
            levels="v2-v3",
            actual=actual,
            expected=expected,
            tolerance=(WHOLE_FLOAT64 if variant in WHOLE else FLOAT64)[quantity],
        )
    before = model(arrays["input_ids"]).data
    unmerge_lora(model)
    assert not np.array_equal(model(arrays["input_ids"]).data, before)
    assert np.array_equal(model(arrays["input_ids"]).data, rows["logits"][0].data)


@pytest.mark.parametrize("variant", ["all-linear", "DoRA, all-linear", "LoRA, whole embedding"])
def test_ten_steps_of_adamw_in_lockstep(parity: ParityRecorder, variant: str) -> None:
    """Losses, and adapters at the end, of all three levels; the frozen base must have kept its bits at each."""
    # A gentle start: chaos would amplify rounding.
    ours, theirs, names = adapted_pair("gpt2", variant, lora_alpha=1.0)
    model = level_3_like(ours, "gpt2", settings("gpt2", variant, lora_alpha=1.0))
    bases = [{n: p.clone() for n, p in m.named_parameters() if not p.requires_grad} for m in (ours, theirs)]
    base3 = {n: p.data.copy() for n, p in model.named_parameters() if not p.requires_grad}
    optimizer = AdamW(parameter_groups(ours, weight_decay=0.1), learning_rate=0.01)
    optimizer3 = AdamW3(parameter_groups(model, weight_decay=0.1), learning_rate=0.01)
    groups = [{"params": [p for p in names.values() if p.ndim == dims]} for dims in (2, 1)]
    decays = (groups[0] | {"weight_decay": 0.1}, groups[1] | {"weight_decay": 0.0})
    library_optimizer = torch.optim.AdamW([g for g in decays if g["params"]], lr=0.01)
    inputs = batch("gpt2", T=20)
    arrays = {name: value.numpy() for name, value in inputs.items()}
    losses: list[list[float]] = []
    for _ in range(10):
        steps = ((ours, optimizer, inputs), (model, optimizer3, arrays), (theirs, library_optimizer, inputs))
        losses.append([])
        for level, its_optimizer, its_inputs in steps:
            its_optimizer.zero_grad()
            loss = level.loss(**its_inputs)
            loss.backward()
            its_optimizer.step()
            losses[-1].append(loss.item())
    found, found3 = dict(ours.named_parameters()), dict(model.named_parameters())
    adapters = [np.concatenate([np.ravel(p[name].data) for name in names]) for p in (found, found3, names)]
    assert losses[-1][0] < losses[0][0] - 0.5
    for index, levels in ((1, "v2-v3"), (2, "v2-v1")):
        for quantity, actual, expected in (
            ("losses", np.array(losses)[:, 0], np.array(losses)[:, index]),
            ("adapters after ten steps", adapters[0], adapters[index]),
        ):
            parity(
                component=f"ten steps of {variant}, gpt2",
                quantity=quantity,
                levels=levels,
                actual=actual,
                expected=expected,
                tolerance=1e-14,
            )
    for before, level in zip(bases, (ours, theirs), strict=True):
        assert all(torch.equal(p, before[n]) for n, p in level.named_parameters() if n in before)
    assert all(np.array_equal(found3[n].data, before) for n, before in base3.items())


def test_level_3_drops_in_training_only_and_switches_adapters() -> None:
    values = settings("llama GQA", "LoRA", lora_dropout=0.5)
    ours, _, _ = adapted_pair("llama GQA", "LoRA", lora_dropout=0.5)
    model, ids = level_3_like(ours, "llama GQA", values), batch("llama GQA", T=9)["input_ids"].numpy()
    assert not np.array_equal(model(ids).data, model(ids).data)
    model.dropout_generator = np.random.default_rng(8)  # as the training loop does at every step
    dropped = model(ids).data
    model.dropout_generator = np.random.default_rng(8)
    assert np.array_equal(dropped, model(ids).data)
    copied = copy.deepcopy(model)
    copied.dropout_generator = np.random.default_rng(8)
    assert np.array_equal(dropped, copied(ids).data)
    model.eval()
    first = model(ids).data
    assert np.array_equal(first, model(ids).data)
    lora3.inject_lora(model, LoraConfig(lora_dropout=0.5, use_dora=True), seed=3, name="second")
    for seed, parameter in enumerate(lora_parameters(model)):
        parameter.data[...] = adapter_values(parameter.shape, seed)
    second = model(ids).data
    assert not any(module.training for module in model.modules())
    assert np.array_equal(second, model(ids).data)
    assert not np.allclose(second, first)
    set_adapter(model, "default")
    assert np.array_equal(model(ids).data, first)
    set_adapter(model, None)
    base = Transformer3(model.config).to(np.float64)
    base.load_state_dict(merged_state_dict(model))
    assert np.allclose(model(ids).data, base(ids).data, rtol=0, atol=1e-14)
    base.eval()
    # New layers in a model that is being evaluated.
    lora3.inject_lora(base, LoraConfig(lora_dropout=0.5), seed=0)
    for seed, parameter in enumerate(lora_parameters(base)):
        parameter.data[...] = adapter_values(parameter.shape, seed)
    assert not any(module.training for module in base.modules())
    assert np.array_equal(base(ids).data, base(ids).data)
    for name in ("default", "two.words", "training", "train"):
        with pytest.raises(UserError, match="choose"):
            lora3.inject_lora(model, LoraConfig(), seed=0, name=name)


@pytest.mark.parametrize("case", TIED_OR_NOT)
def test_whole_modules_take_turns_on_a_base_that_keeps_its_bits(case: str) -> None:
    """At each level: two adapters with an embedding each, one with none, and the base alone."""
    ours, _ = pair(case)
    model = Transformer3(ModelConfig(**MODEL_CASES[case])).to(np.float64)
    model.load_state_dict({name: weight.numpy() for name, weight in ours.state_dict().items()})
    inputs = batch(case, T=9)
    arrays = {name: value.numpy() for name, value in inputs.items()}
    # Not q_proj: beside an adapter it is no longer multiplied together with k_proj and v_proj, and rounds otherwise.
    targets = {"target_modules": ("mlp.c_proj",) if case.startswith("gpt2") else ("down_proj",)}
    whole, none = settings(case, "LoRA, whole embedding", **targets), settings(case, "LoRA", **targets)
    levels: tuple[Any, ...] = (
        (ours, lora, AdamW, parameter_groups, inputs),
        (model, lora3, AdamW3, parameter_groups, arrays),
    )
    for level, module, optimizer_class, groups, its_inputs in levels:

        def logits(level: Any = level, ids: Any = its_inputs["input_ids"]) -> np.ndarray:
            return as_array(level(ids)).copy()

        base = dict(level.named_parameters())
        bits = {name: as_array(parameter).copy() for name, parameter in base.items()}
        outputs: dict[str | None, np.ndarray] = {None: logits()}
        for name, values, steps in (("first", whole, 3), ("second", whole, 1), ("bare", none, 0)):
            module.inject_lora(level, LoraConfig(**values), seed=0, name=name)
            assert np.array_equal(logits(), outputs[None]), "a new adapter changes nothing yet"
            optimizer = optimizer_class(groups(level, weight_decay=0.1), learning_rate=0.01)
            for _ in range(steps):
                optimizer.zero_grad()
                level.loss(**its_inputs).backward()
                optimizer.step()
            outputs[name] = logits()
        assert not np.allclose(outputs["first"], outputs["second"])
        for name in ("second", None, "first", "bare", None):
            set_adapter(level, name)
            assert np.array_equal(logits(), outputs[name])
        for name, parameter in base.items():
            assert np.array_equal(as_array(parameter), bits[name]), f"{name} was written to"
            assert parameter.grad is None
        assert dict(level.named_parameters())[f"{embedding_of(case)}.weight"] is level.token_embedding.weight
        assert level.token_embedding.weight is base[f"{embedding_of(case)}.weight"]
        assert (level.lm_head.weight is level.token_embedding.weight) == level.config.tie_word_embeddings


def embedding_of(case: str) -> str:
    """The path of the token embedding."""
    return "transformer.wte" if case.startswith("gpt2") else "model.embed_tokens"


@pytest.mark.parametrize("case", ["gpt2", "llama GQA"])
def test_the_gradient_of_tied_modules_is_the_sum_of_both_uses(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An untied model with the same numbers tells the two apart. Level 3 computes the rows of the batch in two threads."""
    monkeypatch.setattr("v3_numpy_deep.models.sharding.available_threads", lambda: 2)
    values = settings(case, "DoRA, whole embedding and output matrix")
    ours, _, _ = adapted_pair(case, "DoRA, whole embedding and output matrix")
    untied = Transformer(replace(ours.config, tie_word_embeddings=False)).double()
    untied.load_state_dict(pair(case)[0].state_dict())
    inject_lora(untied, LoraConfig(**values), seed=5)
    copied = {n: p for n, p in ours.state_dict().items() if ".copies." not in n}
    assert not untied.load_state_dict(copied, strict=False).unexpected_keys
    model = level_3_like(ours, case, values)
    inputs = batch(case, T=20)
    ours.loss(**inputs).backward()
    untied.loss(**inputs).backward()
    model.loss(**{name: value.numpy() for name, value in inputs.items()}).backward()
    uses = [untied.token_embedding.weight.grad, untied.lm_head.weight.grad]
    assert all(gradient is not None and gradient.abs().max() > 1e-3 for gradient in uses)
    torch.testing.assert_close(ours.token_embedding.weight.grad, uses[0] + uses[1], rtol=0, atol=1e-15)
    np.testing.assert_allclose(model.lm_head.weight.grad, uses[0] + uses[1], rtol=0, atol=9e-15)


@pytest.mark.parametrize("case", ["gpt2", "llama MHA, untied"])
def test_modules_that_no_adapter_can_bring_are_refused(case: str) -> None:
    embedding = embedding_of(case).rpartition(".")[2]
    levels = ((pair(case)[0], lora), (Transformer3(ModelConfig(**MODEL_CASES[case])), lora3))
    for level, module in levels:
        before = [(name, parameter.requires_grad) for name, parameter in level.named_parameters()]
        for name in ("nothing", "c_attn", "q_proj", "head", "norm", "wpe", ""):
            config = LoraConfig(target_modules="all-linear", modules_to_save=(name,))
            with pytest.raises(UserError, match=f"cannot bring '{name}'; choose among {embedding}, lm_head"):
                module.inject_lora(level, config, seed=0)
        with pytest.raises(UserError, match="lm_head stands in target_modules and in modules_to_save"):
            LoraConfig(target_modules=("lm_head",), modules_to_save=("lm_head",))
        assert before == [(name, parameter.requires_grad) for name, parameter in level.named_parameters()]


class OneLayer(torch.nn.Module):
    """A model of one linear layer, of either library."""

    def __init__(self, proj: torch.nn.Module) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("use_dora", [False, True], ids=["LoRA", "DoRA"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_one_layer_equals_peft_in_training_with_dropout(
    parity: ParityRecorder, bias: bool, use_dora: bool, dropout: float
) -> None:
    """Both libraries' dropout draws with the same kernel, so equal seeds give equal masks."""
    ours, theirs = OneLayer(Linear(6, 5, bias)), OneLayer(torch.nn.Linear(6, 5, bias))
    ours.double().load_state_dict(theirs.double().state_dict())
    values: dict[str, Any] = {
        "r": 2,
        "lora_dropout": dropout,
        "target_modules": ("proj",),
        "use_dora": use_dora,
    }
    inject_lora(ours, LoraConfig(**values), seed=0)
    peft_config = peft.LoraConfig(
        r=2, lora_alpha=16, lora_dropout=dropout, target_modules=["proj"], use_dora=use_dora
    )
    theirs = peft.inject_adapter_in_model(peft_config, theirs)
    trainable = [[p for p in model.parameters() if p.requires_grad] for model in (ours, theirs)]
    for parameters in trainable:
        parameters.sort(key=lambda p: -p.ndim)  # stable: A, B, and the magnitude last
    pairs = dict(zip(*trainable, strict=True))
    with torch.no_grad():
        for seed, (a, b) in enumerate(pairs.items()):
            assert a.shape == b.shape
            a.copy_(torch.from_numpy(adapter_values(tuple(a.shape), seed)))
            b.copy_(a)
    ours.dropout_generator = torch.Generator().manual_seed(3)
    torch.manual_seed(3)
    inputs = [torch.from_numpy(array(1, 7, 6)).requires_grad_() for _ in range(2)]
    outputs = [model(x) for model, x in zip((ours, theirs), inputs, strict=True)]
    for y in outputs:
        y.backward(torch.from_numpy(array(2, 7, 5)))
    rows = {"output": outputs, "grad x": [x.grad for x in inputs]}
    rows |= {f"grad of parameter {i}": [a.grad, b.grad] for i, (a, b) in enumerate(pairs.items())}
    for quantity, (actual, expected) in rows.items():
        parity(
            component=f"{'DoRA' if use_dora else 'LoRA'} layer, {'bias, ' if bias else ''}dropout {dropout}",
            quantity=quantity,
            levels="v2-v1",
            actual=actual,
            expected=expected,
            tolerance=5e-15,
        )
