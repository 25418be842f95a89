"""Adapter folders of all three levels: each loads what another saved, real PEFT included; a wrong one is refused."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from shared_data.errors import UserError
from shared_data.model_files.config import ModelConfig
from shared_data.peft.adapted_model import lora_parameters, merge_lora, set_adapter
from shared_data.peft.config import LoraConfig, QuantizationConfig
from shared_data.peft.target_modules import select_layers
from shared_data.training.parameter_groups import parameter_groups
from tests.parity.model_cases import CASES as MODEL_CASES
from tests.parity.model_cases import batch, pair
from tests.parity.peft_cases import inject_peft, peft_parameters
from tests.parity.recorder import ParityRecorder, as_array
from tests.parity.test_lora import adapter_values
from v2_handwritten.models.peft import adapters, lora, qlora
from v2_handwritten.models.peft.lora import inject_lora
from v2_handwritten.models.transformer import Transformer
from v2_handwritten.pretrain.components import optimizers
from v3_numpy_deep.models.peft import adapters as adapters3
from v3_numpy_deep.models.peft import lora as lora3
from v3_numpy_deep.models.transformer import Transformer as Transformer3
from v3_numpy_deep.pretrain.components import optimizers as optimizers3

ADAPTERS: dict[str, dict[str, Any]] = {
    "LoRA": {"r": 4, "lora_alpha": 3.0, "use_rslora": True, "target_modules": "all-linear"},
    "DoRA": {"r": 2, "use_dora": True, "lora_dropout": 0.1, "target_modules": "all-linear"},
}
WHOLE: dict[str, dict[str, Any]] = {
    "whole embedding": {"r": 2, "modules_to_save": ("embed_tokens",)},
    "whole output matrix": {"r": 2, "use_dora": True, "modules_to_save": ("lm_head",)},
}
CASES = ("gpt2", "llama GQA")
RUNS = [(case, kind) for kind in ADAPTERS for case in CASES]
RUNS += [(case, kind) for kind in WHOLE for case in (*CASES, "gpt2 untied, exact gelu", "llama MHA, untied")]


def settings_of(case: str, kind: str) -> dict[str, Any]:
    """The settings of an adapter; GPT-2 calls its modules by other names."""
    values = {"target_modules": "all-linear"} | (ADAPTERS | WHOLE)[kind]
    names = values.get("modules_to_save", ())
    if case.startswith("gpt2"):
        names = tuple(name.replace("embed_tokens", "wte") for name in names)
    return values | {"modules_to_save": names}


def level_3(ours: Transformer, case: str) -> Transformer3:
    """Level 3's model with level 2's weights."""
    model = Transformer3(ModelConfig(**MODEL_CASES[case])).to(np.float64)
    model.load_state_dict({name: weight.numpy() for name, weight in ours.state_dict().items()})
    return model


def give_values(model: Transformer) -> None:
    """Trained-looking numbers for the active adapter."""
    with torch.no_grad():
        for seed, parameter in enumerate(lora_parameters(model)):
            parameter.copy_(torch.from_numpy(adapter_values(tuple(parameter.shape), seed)))


@pytest.mark.parametrize(("case", "kind"), RUNS)
def test_every_level_loads_what_every_level_saves(
    parity: ParityRecorder, tmp_path: Path, case: str, kind: str
) -> None:
    """v2 → v1 → v3 → v2, and PEFT's own loader on what each hand-written level saved; numbers in a folder are exact."""
    ours, theirs = pair(case)
    model3, fresh = level_3(ours, case), pair(case)[0]
    inject_lora(ours, LoraConfig(**settings_of(case, kind)), seed=0)
    give_values(ours)
    for model in (ours, theirs, model3, fresh):
        model.eval()
    folders = [tmp_path / level for level in ("v2", "v1", "v3", "again")]
    adapters.save_adapter(ours, folders[0], "base")
    theirs.library = peft.PeftModel.from_pretrained(theirs.library, str(folders[0])).eval()
    theirs.library.save_pretrained(str(folders[1]))
    adapters3.load_adapter(model3, folders[1], "other name")
    adapters3.save_adapter(model3, folders[2], "base", "other name")
    adapters.load_adapter(fresh, folders[2])
    adapters.save_adapter(fresh, folders[3], "base")
    tensors = [load_file(folder / "adapter_model.safetensors") for folder in folders]
    for other in tensors[1:]:
        assert other.keys() == tensors[0].keys()
        assert all(torch.equal(other[name], tensors[0][name]) for name in other)
    ids = batch(case, T=9)["input_ids"]
    expected = ours(ids)
    doubles = 6e-14 if kind in WHOLE else 2e-13
    for levels, logits in (("v2-v3", model3(ids.numpy())), ("v2-v2", fresh(ids)), ("v2-v1", theirs(ids))):
        parity(
            component=f"adapter folder, {kind}, {case}",
            quantity="logits after loading",
            levels=levels,
            actual=logits,
            expected=expected,
            tolerance=2e-5 if levels == "v2-v1" and not case.startswith("gpt2") else doubles,
        )
    for folder in (folders[0], folders[2]):
        _, plain = pair(case)
        base = plain.eval()(ids)
        loaded = peft.PeftModel.from_pretrained(plain.library, str(folder))
        assert torch.equal(loaded.eval()(input_ids=ids).logits, theirs(ids))
        assert loaded.peft_config["default"].base_model_name_or_path == "base"
        with loaded.disable_adapter():
            assert torch.equal(loaded(input_ids=ids).logits, base), "loading wrote to the base"


@pytest.mark.parametrize("kind", [*ADAPTERS, *WHOLE])
def test_what_peft_itself_saves_is_loaded(tmp_path: Path, kind: str) -> None:
    """`PeftModel.save_pretrained`, with the regular expression and the paths that it may write as targets."""
    ours, theirs = pair("gpt2")
    inject_peft(theirs, LoraConfig(**settings_of("gpt2", kind)), seed=0)
    with torch.no_grad():
        for seed, parameter in enumerate(peft_parameters(theirs).values()):
            parameter.copy_(torch.from_numpy(adapter_values(tuple(parameter.shape), seed)))
    theirs.library.save_pretrained(tmp_path)
    model3 = level_3(ours, "gpt2")
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    ids = batch("gpt2", T=9)["input_ids"]
    for targets in (settings["target_modules"], r".*\.(c_attn|c_proj|c_fc)", "all-linear"):
        settings["target_modules"] = targets
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
        model, _ = pair("gpt2")
        adapters.load_adapter(model.eval(), tmp_path)
        torch.testing.assert_close(model(ids), theirs.eval()(ids), rtol=0, atol=1e-12)
    adapters3.load_adapter(model3.eval(), tmp_path)
    np.testing.assert_allclose(model3(ids.numpy()).data, theirs(ids).detach(), rtol=0, atol=1e-12)


def test_two_folders_on_one_base_and_some_layers_only(tmp_path: Path) -> None:
    ours, _ = pair("llama GQA")
    ids = batch("llama GQA", T=9)["input_ids"]
    expected = {}
    for index, targets in enumerate([("q_proj", "down_proj"), ("layers.1.mlp.up_proj",)]):
        inject_lora(ours, LoraConfig(r=2, target_modules=targets), seed=index, name=f"task-{index}")
        give_values(ours)
        adapters.save_adapter(ours, tmp_path / str(index), "base", f"task-{index}")
        expected[f"task-{index}"] = ours(ids)
    targets = [
        json.loads((tmp_path / str(index) / "adapter_config.json").read_text())["target_modules"]
        for index in range(2)
    ]
    assert targets == [["down_proj", "q_proj"], ["model.layers.1.mlp.up_proj"]]
    model, _ = pair("llama GQA")
    for index in range(2):
        adapters.load_adapter(model, tmp_path / str(index), f"task-{index}")
    for name, logits in expected.items():
        set_adapter(model, name)
        assert torch.equal(model(ids), logits)


@pytest.mark.parametrize("case", ["gpt2", "llama MHA, untied"])
def test_training_goes_on_from_a_folder_as_if_it_had_not_stopped(tmp_path: Path, case: str) -> None:
    """Adapters and whole modules from the folder, the moments of the optimizer by their parameters' names."""
    ours, _ = pair(case)
    inputs = batch(case, T=9)
    arrays = {name: value.numpy() for name, value in inputs.items()}
    levels: tuple[Any, ...] = (
        (lambda: pair(case)[0], adapters, lora, optimizers, inputs),
        (lambda: level_3(ours, case), adapters3, lora3, optimizers3, arrays),
    )
    for new, folders, module, optimizer_module, its_inputs in levels:

        def train(
            model: Any, state: Any = None, optimizers: Any = optimizer_module, inputs: Any = its_inputs
        ) -> Any:
            optimizer = optimizers.AdamW(parameter_groups(model, weight_decay=0.1), 0.01)
            if state is not None:
                optimizer.load_state_dict(state)
            for _ in range(2):
                optimizer.zero_grad()
                model.loss(**inputs).backward()
                optimizer.step()
            return optimizer.state_dict()

        model, stopped = new(), new()
        for each in (model, stopped):
            module.inject_lora(each, LoraConfig(**settings_of(case, "whole embedding")), seed=0)
        train(model, train(model))
        state = {name: copy.deepcopy(value) for name, value in train(stopped).items()}
        folders.save_adapter(stopped, tmp_path, "base")
        again = new()
        folders.load_adapter(again, tmp_path)
        train(again, state)
        for a, b in zip(model.parameters(), again.parameters(), strict=True):
            assert np.array_equal(as_array(a), as_array(b))


def test_an_adapter_trained_on_a_quantized_base_is_an_adapter(tmp_path: Path) -> None:
    ours, _ = pair("gpt2", torch.float32)
    qlora.quantize_model(ours, QuantizationConfig())
    inject_lora(ours, LoraConfig(target_modules=("c_attn",)), seed=0)
    give_values(ours)
    adapters.save_adapter(ours, tmp_path, "base")
    assert json.loads((tmp_path / "adapter_config.json").read_text())["fan_in_fan_out"] is True
    model, _ = pair("gpt2", torch.float32)
    adapters.load_adapter(model, tmp_path)
    for a, b in zip(lora_parameters(model), lora_parameters(ours), strict=True):
        assert torch.equal(a, b)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound adapter of "llama GQA"."""
    folder = tmp_path_factory.mktemp("adapter")
    model, _ = pair("llama GQA")
    inject_lora(model, LoraConfig(r=2), seed=0)
    adapters.save_adapter(model, folder, "base")
    return folder


def broken(saved: Path, folder: Path, fault: str) -> Path:
    """A copy of the adapter with something wrong."""
    shutil.copytree(saved, folder)
    weights, settings_file = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    tensors, settings = load_file(weights), json.loads(settings_file.read_text())
    first = next(iter(tensors))
    if fault == "cut off":
        weights.write_bytes(weights.read_bytes()[:-9])
    elif fault == "no weights":
        weights.unlink()
    elif fault == "no settings":
        settings_file.unlink()
    elif fault == "missing tensor":
        save_file({k: v for k, v in tensors.items() if k != first}, weights)
    elif fault == "wrong shape":
        save_file(tensors | {first: torch.zeros(3, 3)}, weights)
    elif fault == "more layers":
        save_file(tensors | {first.replace("layers.0", "layers.9"): tensors[first].clone()}, weights)
    elif fault.startswith("whole embedding"):
        names = ["embed_tokens.weight"] if "half" in fault else ["embed_tokens.weight", "lm_head.weight"]
        shape = (96, 31) if "shape" in fault else (96, 32)
        paths = {"embed_tokens.weight": "model.embed_tokens.weight", "lm_head.weight": "lm_head.weight"}
        whole = {f"base_model.model.{paths[name]}": torch.zeros(shape) for name in names}
        save_file(tensors | whole, weights)
        settings |= {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": "untied" not in fault}
        settings_file.write_text(json.dumps(settings))
    else:
        changes = {
            "other kind": {"peft_type": "IA3"},
            "no rank": {"r": None},
            "other target": {"target_modules": ["c_attn"]},
        }
        changes |= {"unknown whole module": {"modules_to_save": ["nothing"]}}
        changes |= {"ranks by layer": {"rank_pattern": {"q_proj": 4}}, "trained biases": {"bias": "all"}}
        changes |= {"changed base": {"init_lora_weights": "pissa"}, "a later setting": {"use_new_lora": 3}}
        settings_file.write_text(json.dumps(settings | changes[fault]))
    return folder


FAULTS = {
    "cut off": "not a readable safetensors file",
    "no weights": "has no adapter_model.safetensors",
    "no settings": "adapter_config.json is missing",
    "missing tensor": "has no tensor",
    "wrong shape": "has shape",
    "more layers": "belongs to no layer",
    "other kind": "not the configuration of a LoRA adapter",
    "no rank": "r is None, not a valid integer; correct",
    "other target": "none of its target modules",
    "ranks by layer": "rank_pattern",
    "trained biases": "bias is 'all'",
    "changed base": "init_lora_weights is 'pissa'",
    "a later setting": "use_new_lora is 3",
    "unknown whole module": "cannot bring 'nothing'",
    "whole embedding of another shape": "has shape",
    "whole embedding by half": "has no tensor base_model.model.lm_head.weight",
    "whole embedding, untied": "ensure_weight_tying",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_folder_is_refused_and_the_model_stays_as_it_was(
    saved: Path, tmp_path: Path, fault: str
) -> None:
    folder = broken(saved, tmp_path / "broken", fault)
    ours, _ = pair("llama GQA")
    model3 = level_3(ours, "llama GQA")
    for level, model in ((adapters, ours), (adapters3, model3)):
        before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        with pytest.raises(UserError, match=FAULTS[fault]):
            level.load_adapter(model, folder)
        assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before


def test_an_adapter_for_another_base_is_refused(saved: Path) -> None:
    """Another family, another width, another depth: at both levels."""
    wide = MODEL_CASES["llama GQA"] | {"hidden_size": 64}
    deep = MODEL_CASES["llama GQA"] | {"num_hidden_layers": 3}
    for values in (MODEL_CASES["gpt2"], wide, deep):
        for level, model in ((adapters, Transformer), (adapters3, Transformer3)):
            with pytest.raises(UserError, match="trained on"):
                level.load_adapter(model(ModelConfig(**values)), saved)


def test_what_cannot_be_saved_or_loaded_now_is_said(saved: Path, tmp_path: Path) -> None:
    ours, _ = pair("llama GQA")
    model3 = level_3(ours, "llama GQA")
    inject_lora(ours, LoraConfig(), seed=0)
    lora3.inject_lora(model3, LoraConfig(), seed=0)
    for level, model in ((adapters, ours), (adapters3, model3)):
        with pytest.raises(UserError, match="'other'"):
            level.save_adapter(model, tmp_path / "none", "base", "other")
    assert not (tmp_path / "none").exists()
    for level, model in ((adapters, ours), (adapters3, model3)):
        with pytest.raises(UserError, match="default"):
            level.load_adapter(model, saved)
    merge_lora(ours)
    with pytest.raises(UserError, match="unmerge_lora"):
        adapters.load_adapter(ours, saved, "second")


def test_all_linear_leaves_names_of_experts_to_peft() -> None:
    """PEFT takes gate_proj, up_proj and down_proj of a mixture for the experts' own matrices, also in dense layers."""
    config = ModelConfig(
        model_type="qwen3_moe", vocab_size=96, hidden_size=32, num_hidden_layers=2, mlp_only_layers=[0]
    )
    for model in (Transformer(config), Transformer3(config)):
        names = {place.attribute for place in select_layers(model, "all-linear")}
        assert names == {"q_proj", "k_proj", "v_proj", "o_proj"}
        with pytest.raises(UserError, match="target module 'down_proj' is no linear layer"):
            select_layers(model, ["down_proj"])
