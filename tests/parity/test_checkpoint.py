"""Level 2 and transformers: folders that one writes and the other reads; and what a broken folder says."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from shared_data.errors import UserError
from shared_data.model_files.config import ModelConfig
from tests.parity.model_cases import CASES, batch, pair
from tests.parity.recorder import ParityRecorder
from tests.parity.test_transformer import TOLERANCES
from v2_handwritten.models.checkpoint import load_model, save_model
from v2_handwritten.models.transformer import Transformer

Edit = Callable[[Path], None]


def logits(model: torch.nn.Module, case: str) -> torch.Tensor:
    """Of the case's batch; of a library model or of one of ours."""
    with torch.no_grad():
        output = model(batch(case)["input_ids"])
    return getattr(output, "logits", output)


@pytest.mark.parametrize("case", CASES)
def test_what_level_2_saves_transformers_loads_with_the_same_logits(
    parity: ParityRecorder, tmp_path: Path, case: str
) -> None:
    ours, _ = pair(case, torch.float32)
    save_model(ours, tmp_path)
    library, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert library.dtype == torch.float32
    parity(
        component=f"checkpoint, {case}",
        quantity="logits of from_pretrained(our folder)",
        levels="v2-v1",
        actual=logits(ours, case),
        expected=logits(library.eval(), case),
        tolerance=TOLERANCES[f"{case.split()[0]} float32"]["logits"],
    )
    again = load_model(tmp_path)
    assert again.config == ours.config
    assert torch.equal(logits(again, case), logits(ours, case))


@pytest.mark.parametrize("shard", ["1GB", "10KB"])
@pytest.mark.parametrize("case", ["gpt2", "llama MHA, untied"])
def test_what_transformers_saves_level_2_loads_bit_by_bit(tmp_path: Path, case: str, shard: str) -> None:
    _, library = pair(case, torch.float32)
    library.library.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").is_file() == (shard == "10KB")
    state, expected = load_model(tmp_path).state_dict(), library.library.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_type_of_the_weights_is_kept_or_changed_as_asked(tmp_path: Path, dtype: torch.dtype) -> None:
    ours, _ = pair("llama GQA", torch.float32)
    save_model(ours.to(dtype), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    assert load_model(tmp_path).lm_head.weight.dtype == dtype
    wide = load_model(tmp_path, dtype=torch.float32)
    assert wide.lm_head.weight.dtype == torch.float32
    assert torch.equal(wide.lm_head.weight, ours.lm_head.weight.float())
    assert AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").dtype == dtype


def test_the_first_gpt2_checkpoints_without_prefix_and_with_buffers_load(tmp_path: Path) -> None:
    ours, _ = pair("gpt2", torch.float32)
    save_model(ours, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    old = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    old["h.0.attn.bias"] = torch.ones(1, 1, 128, 128).tril()
    old["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    old["lm_head.weight"] = old["wte.weight"].clone()
    save_file(old, tmp_path / "model.safetensors")
    model = load_model(tmp_path)
    assert torch.equal(logits(model, "gpt2"), logits(ours, "gpt2"))
    assert model.lm_head.weight is model.token_embedding.weight


def test_a_loaded_model_has_no_dropout_until_it_is_trained(tmp_path: Path) -> None:
    config = ModelConfig(
        model_type="gpt2", vocab_size=50, hidden_size=16, num_attention_heads=2, resid_pdrop=0.5
    )
    save_model(Transformer(config), tmp_path)
    model, ids = load_model(tmp_path), torch.arange(12)[None]
    torch.testing.assert_close(model(ids), model(ids), rtol=0, atol=0)
    library = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.training == library.training


def test_a_loaded_model_trains_like_the_saved_one(tmp_path: Path) -> None:
    ours, _ = pair("llama GQA", torch.float32)
    save_model(ours, tmp_path)
    loaded = load_model(tmp_path)
    for model in (ours, loaded):
        model.loss(**batch("llama GQA")).backward()
    for (name, a), (_, b) in zip(ours.named_parameters(), loaded.named_parameters(), strict=True):
        assert a.grad is not None, name
        assert b.grad is not None, name
        assert torch.equal(a.grad, b.grad), name


@pytest.mark.parametrize("family", ["gpt2", "llama GQA"])
def test_what_was_loaded_begins_in_memory_where_torch_would_put_it(family: str, tmp_path: Path) -> None:
    """Some processors round a product by where its matrices begin; a resumed run must not notice that it was one."""
    ours, _ = pair(family, torch.float32)
    save_model(ours, tmp_path)
    assert {parameter.data_ptr() % 64 for parameter in load_model(tmp_path).parameters()} == {0}


def test_tokenizer_files_travel_with_the_model(tmp_path: Path) -> None:
    source = tmp_path / "tokenizer"
    source.mkdir()
    names = (
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
    )
    names += ("merges.txt", "chat_template.jinja", "additional_chat_templates/tool_use.jinja")
    for name in (*names, "notes.txt"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(name)
    ours, _ = pair("gpt2", torch.float32)
    save_model(ours, tmp_path / "model", source)
    assert [(tmp_path / "model" / name).read_text() for name in names] == list(names)
    assert not (tmp_path / "model" / "notes.txt").exists()


def edit_config(**changes: object) -> Edit:
    """Change fields of config.json."""

    def edit(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Edit:
    """Change the tensors of model.safetensors."""

    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return edit


def truncate(folder: Path) -> None:
    """Cut the file in the middle of its numbers."""
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


BROKEN: dict[str, tuple[Edit, str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    "config no JSON": (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
    "another architecture": (edit_config(model_type="bert"), "'bert'"),
    "another shape": (
        edit_config(intermediate_size=64),
        r"gate_proj.weight has shape \[48, 32\].*asks for \[64, 32\]",
    ),
    "too many layers": (edit_config(num_hidden_layers=3), "lacks tensor model.layers.2"),
    "too few layers": (edit_config(num_hidden_layers=1), "unexpected tensor model.layers.1"),
    "missing tensor": (edit_tensors(lambda t: t.pop("model.norm.weight")), "lacks tensor model.norm.weight"),
    "foreign tensor": (edit_tensors(lambda t: t.update(extra=torch.ones(2))), "unexpected tensor extra"),
    "integer weights": (
        edit_tensors(lambda t: t.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)})),
        "model.norm.weight has type I8",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors"),
    "truncated": (truncate, "not a readable safetensors file"),
    "no safetensors": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"PK\x03\x04" * 9),
        "not a readable",
    ),
    "empty": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "not a readable"),
}


@pytest.mark.parametrize("problem", BROKEN)
def test_a_broken_folder_is_a_user_error_that_names_the_cause(tmp_path: Path, problem: str) -> None:
    ours, _ = pair("llama GQA", torch.float32)
    save_model(ours, tmp_path)
    edit, message = BROKEN[problem]
    edit(tmp_path)
    with pytest.raises(UserError, match=message):
        load_model(tmp_path)


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    _, library = pair("gpt2", torch.float32)
    library.library.save_pretrained(tmp_path, max_shard_size="10KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shutil.move(shard, tmp_path / "elsewhere")
    with pytest.raises(UserError, match=shard.name):
        load_model(tmp_path)
