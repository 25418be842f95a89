"""Folders of quantized models: what one level writes, the others read; damaged and unsupported ones are one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from shared_data.errors import UserError
from shared_data.model_files.compatibility import initial_config
from shared_data.model_files.folder import read_config
from shared_data.model_files.gguf_export import export_gguf
from shared_data.peft.config import LoraConfig
from tests.parity.arrays import integers
from tests.parity.model_cases import CASES
from tests.parity.recorder import ParityRecorder
from v1_quick.models.checkpoint import load_model as load_model1
from v1_quick.models.quantize import quantize_model as quantize_model1
from v2_handwritten.models.checkpoint import load_model, save_model
from v2_handwritten.models.peft.adapters import merged_model
from v2_handwritten.models.peft.lora import inject_lora
from v2_handwritten.models.quantization.quantize import quantize_model
from v2_handwritten.models.transformer import ModelConfig, Transformer, new_model
from v3_numpy_deep.models.checkpoint import load_model as load_model3
from v3_numpy_deep.models.checkpoint import save_model as save_model3
from v3_numpy_deep.models.peft.adapters import merged_model as merged_model3
from v3_numpy_deep.models.quantization.quantize import quantize_model as quantize_model3

WIDE = {
    "hidden_size": 64,
    "intermediate_size": 128,
}  # rows of whole blocks: bitsandbytes decodes others wrongly
IDS = integers(5, 96, 2, 12)
FAMILIES = ("gpt2", "llama GQA")
SCHEMES = ("int8", "int4", "nf4", "gptq")


def model_of(case: str) -> Transformer:
    return new_model(ModelConfig(**CASES[case] | WIDE), 0).eval()


def logits(model: Any) -> np.ndarray:
    """Of any level, in evaluation."""
    if isinstance(model, Transformer):
        return model(torch.from_numpy(IDS)).detach().numpy()
    if isinstance(model, torch.nn.Module):
        return model(torch.from_numpy(IDS)).logits.detach().numpy()
    return model(IDS).data


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """A folder that level 2 has written, of a family and by a scheme."""
    made: dict[tuple[str, str], Path] = {}

    def folder(case: str, scheme: str) -> Path:
        if (case, scheme) not in made:
            path = tmp_path_factory.mktemp("quantized")
            ids = torch.from_numpy(integers(1, 96, 8, 16))
            save_model(quantize_model(model_of(case), scheme, ids), path)
            made[case, scheme] = path
        return made[case, scheme]

    return folder


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("case", FAMILIES)
def test_levels_2_and_3_read_and_write_each_others_folders(
    parity: ParityRecorder, folders: Callable[[str, str], Path], case: str, scheme: str, tmp_path: Path
) -> None:
    folder = folders(case, scheme)
    model, deep = load_model(folder), load_model3(folder)
    save_model3(deep, tmp_path / "by 3")
    tensors, again = (load_file(each / "model.safetensors") for each in (folder, tmp_path / "by 3"))
    assert tensors.keys() == again.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, again[name]), name
    assert read_config(tmp_path / "by 3") == read_config(folder)
    wide = load_model(folder, torch.float64)
    parity(
        component=f"{scheme} folder, {case}",
        quantity="logits",
        levels="v2-v3",
        actual=logits(load_model3(folder, np.float64)),
        expected=logits(wide),
        tolerance=3e-14,
    )
    np.testing.assert_allclose(logits(model), logits(wide), atol=0.1 if scheme == "int8" else 1e-4)


@pytest.mark.parametrize("scheme", ["int8", "nf4"])
@pytest.mark.parametrize("case", FAMILIES)
def test_transformers_reads_our_folders_and_we_read_its(
    parity: ParityRecorder, folders: Callable[[str, str], Path], case: str, scheme: str, tmp_path: Path
) -> None:
    """In training, nothing but the weights is rounded.

    In evaluation, an activation that differs in the seventh digit may be rounded to the other of two codes, and all that follow from it move
    as far as rounding moves them. (One layer at a time they are equal: test_quantization.py.)
    """
    save_model(model_of(case), tmp_path / "plain")
    quantize_model1(load_model1(tmp_path / "plain"), scheme).save_pretrained(tmp_path / "theirs")
    theirs, ours = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "theirs", folders(case, scheme))
    )
    assert theirs.keys() == ours.keys()
    for name, tensor in ours.items():
        assert name.endswith("__nf4") or torch.equal(tensor, theirs[name]), name
    for written, folder in (("ours", folders(case, scheme)), ("theirs", tmp_path / "theirs")):
        library, models = load_model1(folder), (("v2-v1", load_model(folder)), ("v3-v1", load_model3(folder)))
        # In evaluation, bitsandbytes computes NF4 in bfloat16 on some processors.
        for training in (True, False) if scheme == "int8" else (True,):
            expected = logits(library.train(training))
            for levels, model in models:
                parity(
                    component=f"{scheme} folder of {written}, {case}, {'training' if training else 'evaluation'}",
                    quantity="logits",
                    levels=levels,
                    actual=logits(model.train(training)),
                    expected=expected,
                    tolerance=1e-5 if training else 2e-2,
                )


def test_double_quantization_of_the_library_is_read(parity: ParityRecorder, tmp_path: Path) -> None:
    save_model(model_of("llama GQA"), tmp_path / "plain")
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    library = AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain", quantization_config=config, dtype=torch.float32
    )
    library.save_pretrained(tmp_path / "theirs")
    for levels, model in (
        ("v2-v1", load_model(tmp_path / "theirs")),
        ("v3-v1", load_model3(tmp_path / "theirs")),
    ):
        parity(
            component="nf4 folder, double quantization",
            quantity="logits",
            levels=levels,
            actual=logits(model),
            expected=logits(library.train()),
            tolerance=1e-5,
        )
    save_model(load_model(tmp_path / "theirs"), tmp_path / "again")
    np.testing.assert_array_equal(
        logits(load_model(tmp_path / "again")), logits(load_model(tmp_path / "theirs"))
    )


def test_torchaos_int4_is_as_near_as_ours_and_only_level_1_reads_it(tmp_path: Path) -> None:
    """The same levels, but for the scale, which torchao keeps in float32."""
    plain = model_of("llama GQA")
    save_model(plain, tmp_path / "plain")
    theirs = quantize_model1(load_model1(tmp_path / "plain"), "int4", group_size=16)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = quantize_model(model_of("llama GQA"), "int4", group_size=16)
    scale = float(np.abs(logits(plain)).max())
    assert (
        np.abs(logits(theirs) - logits(ours)).max()
        < 0.05 * scale
        < np.abs(logits(theirs) - logits(plain)).max()
    )
    np.testing.assert_array_equal(logits(load_model1(tmp_path / "theirs")), logits(theirs))
    for load in (load_model, load_model3):
        with pytest.raises(
            UserError, match=r"in torchao's format, which this level does not read; use level 1"
        ):
            load(tmp_path / "theirs")


def test_level_1_refuses_what_it_would_not_read_rightly(
    folders: Callable[[str, str], Path], tmp_path: Path
) -> None:
    with pytest.raises(
        UserError, match=r"GPTQ's packed int4 format, which this level does not read; use level 2 or 3"
    ):
        load_model1(folders("llama GQA", "gptq"))
    narrow = new_model(ModelConfig(**CASES["llama GQA"]), 0)
    save_model(quantize_model(narrow, "nf4"), tmp_path)
    with pytest.raises(UserError, match=r"decodes rows that end inside a block of 64 wrongly .*or level 2"):
        load_model1(tmp_path)
    with pytest.raises(UserError, match=r"decodes rows that end inside a block of 64 wrongly .*or level 2"):
        quantize_model1(load_model1_plain(narrow, tmp_path / "plain"), "nf4")


def load_model1_plain(model: Transformer, folder: Path) -> Any:
    plain = merged_model(model)
    save_model(plain, folder)
    return load_model1(folder)


Damage = Callable[[Path], None]


def config_entry(**entries: Any) -> Damage:
    """Change the quantization_config."""

    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] |= entries
        (folder / "config.json").write_text(json.dumps(config))

    return damage


def tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor] | None) -> Damage:
    """Change a tensor of the first query matrix, or leave it out."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        key = f"model.layers.0.self_attn.q_proj.{name}"
        value = tensors.pop(key)
        if change is not None:
            tensors[key] = change(value).contiguous()
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return damage


Q = r"model\.layers\.0\.self_attn\.q_proj\."
DAMAGES: dict[str, tuple[str, Damage, str]] = {
    "fp8": ("int8", config_entry(quant_method="fp8"), r"quant_method 'fp8', which is not supported; choose"),
    "awq's own": ("int4", config_entry(quant_method="awq"), r"quant_method 'awq', which is not supported; "),
    "3 bits": ("int4", config_entry(bits=3), r"has bits = 3, and only 4 is supported; use"),
    "fp4": ("nf4", config_entry(bnb_4bit_quant_type="fp4"), r"bnb_4bit_quant_type = 'fp4'; int8 .* and nf4"),
    "marlin": ("gptq", config_entry(checkpoint_format="marlin"), r"checkpoint_format = 'marlin'; gptq and"),
    "odd group": (
        "gptq",
        config_entry(group_size="a"),
        r"quantization_config: group_size is 'a', not .*; correct",
    ),
    "other groups": (
        "gptq",
        config_entry(group_size=64),
        r"qzeros has shape .*but config.json asks for .*; use",
    ),
    "skipped": (
        "int8",
        config_entry(llm_int8_skip_modules=["o_proj"]),
        r"llm_int8_skip_modules = \['o_proj'\], which is not supported; use",
    ),
    "threshold": (
        "int8",
        config_entry(llm_int8_threshold="6"),
        r"llm_int8_threshold is '6', not .*; correct",
    ),
    "no scales": (
        "gptq",
        tensor("scales", None),
        rf"lacks tensor {Q}scales for a llama model of 2 layers; use",
    ),
    "no SCB": ("int8", tensor("SCB", None), rf"lacks tensor {Q}SCB for a llama model of 2 layers; use"),
    "short scales": ("int8", tensor("SCB", lambda t: t[:3]), rf"{Q}SCB has shape \[3\], but .*\[64\]; use"),
    "float codes": ("int8", tensor("weight", lambda t: t.float()), rf"{Q}weight has type F32, but .*I8; use"),
    "groups beyond": (
        "gptq",
        tensor("g_idx", lambda t: t + 9),
        rf"{Q}g_idx names groups that there are not; copy",
    ),
    "NaN among scales": (
        "int8",
        tensor("SCB", lambda t: t.fill_(float("nan"))),
        rf"{Q}SCB holds NaN or infinity; copy",
    ),
    "infinite scale": (
        "nf4",
        tensor("weight.absmax", lambda t: t.fill_(float("inf"))),
        rf"{Q}weight\.absmax holds NaN or infinity; copy",
    ),
    "levels of zeros": (
        "nf4",
        tensor("weight.quant_map", lambda t: t.fill_(0)),
        rf"{Q}weight\.quant_map does not hold the levels of this format; copy",
    ),
    "state of many levels": (
        "nf4",
        tensor(
            "weight.quant_state.bitsandbytes__nf4",
            lambda _: torch.frombuffer(bytearray(b"[" * 100_000), dtype=torch.uint8),
        ),
        r"its quant_state is damaged .*; copy the file again",
    ),
    "no state": (
        "nf4",
        tensor("weight.quant_state.bitsandbytes__nf4", lambda t: t[:9]),
        r"its quant_state is damaged .*; copy the file again",
    ),
    "other shape": (
        "nf4",
        tensor(
            "weight.quant_state.bitsandbytes__nf4",
            lambda t: torch.frombuffer(
                bytearray(bytes(t.tolist()).replace(b"[64, 64]", b"[32, 64]")), dtype=torch.uint8
            ),
        ),
        r"its quant_state has shape = \[32, 64\], not \[64, 64\]; use",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_or_unsupported_folder_is_one_line(
    name: str, folders: Callable[[str, str], Path], tmp_path: Path
) -> None:
    scheme, damage, says = DAMAGES[name]
    folder = Path(shutil.copytree(folders("llama GQA", scheme), tmp_path / "folder"))
    damage(folder)
    for load in (load_model, load_model3):
        with pytest.raises(UserError, match=says):
            load(folder)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_quantized_model_becomes_a_plain_one_that_computes_the_same(
    folders: Callable[[str, str], Path], scheme: str
) -> None:
    """What training starts from, and what an adapter is merged into."""
    folder = folders("gpt2", scheme)
    model = load_model(folder)
    plain, plain3 = merged_model(model), merged_model3(load_model3(folder))
    assert plain.config.quantization is None
    assert isinstance(plain.transformer.h[0].attn.c_attn.weight, torch.nn.Parameter)
    # As in training: activations are not rounded. GPT-2's dropout is 0 here.
    np.testing.assert_allclose(logits(plain), logits(model.train()), atol=1e-5)
    np.testing.assert_allclose(logits(plain3.eval()), logits(plain), atol=1e-5)
    inject_lora(model, LoraConfig(r=2, target_modules=("c_attn",)), seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.3)
    np.testing.assert_allclose(logits(merged_model(model)), logits(model.train()), atol=2e-5)
    assert np.abs(logits(model) - logits(plain)).max() > 0.1, "the adapter must be heard"


def test_a_quantized_folder_is_not_exported_and_pretraining_does_not_go_on_from_it(
    folders: Callable[[str, str], Path], tmp_path: Path
) -> None:
    folder = folders("llama GQA", "int8")
    with pytest.raises(
        UserError, match=r"is quantized already \(int8\); export the model that it was made from"
    ):
        export_gguf(folder, folder, tmp_path / "a.gguf", "f16")
    with pytest.raises(UserError, match=r"is quantized \(int8\); pretraining goes on from the model"):
        initial_config(folder, read_config(folder), tmp_path)


def test_foreign_gptq_folders_are_read(tmp_path: Path) -> None:
    """As AutoGPTQ writes them: symmetric, groups of a whole row, bfloat16 scales, nothing said about the format."""
    model = quantize_model3(load_model3_plain(tmp_path / "plain"), "int4", group_size=64)
    save_model3(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 64,
        "sym": True,
        "desc_act": True,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = load_file(tmp_path / "model.safetensors")
    for name in [name for name in tensors if name.endswith("scales")]:
        tensors[name] = tensors[name].bfloat16()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    found, deep = load_model(tmp_path, torch.float64), load_model3(tmp_path, np.float64)
    np.testing.assert_allclose(logits(deep), logits(found), atol=1e-12)
    scale = float(np.abs(logits(model)).max())
    assert np.abs(logits(found) - logits(model)).max() < 0.1 * scale


def load_model3_plain(folder: Path) -> Any:
    save_model(model_of("llama GQA"), folder)
    return load_model3(folder)


@pytest.mark.parametrize("scheme", ["int8", "int4", "nf4"])
def test_a_quantized_model_that_was_cast_is_saved_and_read(scheme: str, tmp_path: Path) -> None:
    """The layouts have their scales in float32, whatever type the model computes in."""
    model = quantize_model(model_of("llama GQA"), scheme).to(torch.bfloat16)
    save_model(model, tmp_path)
    again = load_model(tmp_path).state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again[name].to(tensor.dtype), tensor), name
    assert model(torch.from_numpy(IDS)).isfinite().all()
