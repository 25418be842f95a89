"""Level 3's whole model against level 2 (float64) and the library (float32): logits, loss, every gradient; packing; checkpoints."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shared_data.model_files.config import ModelConfig
from shared_data.model_files.size import count_parameters
from tests.parity.model_cases import CASES, LibraryModel, batch, config_of, gradients, packed, pair
from tests.parity.recorder import ParityRecorder
from v2_handwritten.models.checkpoint import load_model as load_model2
from v2_handwritten.models.checkpoint import save_model as save_model2
from v2_handwritten.models.transformer import Transformer as Transformer2
from v3_numpy_deep.autograd import no_grad, parallel
from v3_numpy_deep.models.checkpoint import load_model, save_model
from v3_numpy_deep.models.packing import Packing
from v3_numpy_deep.models.transformer import Transformer

# At most ten times the measured errors.
V2_FLOAT64 = {"logits": 2e-14, "loss": 1e-15, "every gradient": 4e-14}
V1_FLOAT32 = {"logits": 2e-5, "loss": 5e-7, "every gradient": 3e-5}
PACKED = [[30, 40], [66, 4]]


def ours_like(theirs: torch.nn.Module, case: str, dtype: type) -> Transformer:
    """Level 3's model with the weights of another level's."""
    model = Transformer(ModelConfig(**CASES[case])).to(dtype)
    model.load_state_dict({name: value.numpy() for name, value in theirs.state_dict().items()})
    return model


def arrays(inputs: dict[str, Any]) -> dict[str, Any]:
    return {
        name: Packing(value.document_ids.numpy()) if name == "packing" else value.numpy()
        for name, value in inputs.items()
    }


def compare(
    parity: ParityRecorder,
    case: str,
    levels: str,
    ours: Transformer,
    theirs: Transformer2 | LibraryModel,
    inputs: dict[str, Any],
    tolerances: dict[str, float],
) -> None:
    """Logits, loss and gradients; each gradient is divided by its largest element, so none is too small to count."""
    inputs = dict(inputs)
    loss, expected_loss = ours.loss(**arrays(inputs)), theirs.loss(**inputs)
    loss.backward()
    expected_loss.backward()
    inputs.pop("labels")
    with no_grad(), torch.no_grad():
        logits, expected_logits = ours(**arrays(inputs)), theirs(**inputs)
    expected = {name: gradient.numpy() for name, gradient in gradients(theirs).items()}
    actual = {name: parameter.grad for name, parameter in ours.named_parameters()}
    assert actual.keys() == expected.keys()
    rows = [
        np.concatenate([(found[name] / np.abs(expected[name]).max()).ravel() for name in expected])
        for found in (actual, expected)
    ]
    for quantity, a, b in (
        ("logits", logits, expected_logits),
        ("loss", loss, expected_loss),
        ("every gradient", *rows),
    ):
        parity(
            component=f"transformer, {case}{', packed' if 'packing' in inputs else ''}",
            quantity=quantity,
            levels=levels,
            actual=a,
            expected=b,
            tolerance=tolerances[quantity],
        )


@pytest.mark.parametrize("packing", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("case", CASES)
def test_equals_level_2_in_float64(parity: ParityRecorder, case: str, packing: bool) -> None:
    theirs, _ = pair(case, torch.float64)
    inputs = batch(case) | (packed(PACKED) if packing else {})
    compare(parity, case, "v2-v3", ours_like(theirs, case, np.float64), theirs, inputs, V2_FLOAT64)


@pytest.mark.parametrize("packing", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_library_in_float32(parity: ParityRecorder, case: str, packing: bool) -> None:
    level2, library = pair(case, torch.float32)
    inputs = batch(case) | (packed(PACKED) if packing else {})
    compare(parity, case, "v1-v3", ours_like(level2, case, np.float32), library, inputs, V1_FLOAT32)


@pytest.mark.parametrize("case", ["gpt2", "llama GQA"])
def test_a_packed_batch_equals_its_documents_one_by_one(parity: ParityRecorder, case: str) -> None:
    level2, _ = pair(case, torch.float64)
    model, inputs = ours_like(level2, case, np.float64), arrays(batch(case) | packed(PACKED))
    loss = model.loss(**inputs)
    loss.backward()
    actual = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    count, total = (inputs["labels"] != -100).sum(), 0.0
    for row, lengths in enumerate(PACKED):
        ends = np.cumsum(lengths)
        for start, end in zip([0, *ends], ends, strict=False):
            ids, labels = (
                inputs["input_ids"][row : row + 1, start:end],
                inputs["labels"][row : row + 1, start:end],
            )
            part = model.loss(ids, labels) * float((labels != -100).sum() / count)
            part.backward()
            total += part.item()
    for quantity, a, b in (
        ("loss", loss, total),
        *((f"grad {name}", actual[name], parameter.grad) for name, parameter in model.named_parameters()),
    ):
        parity(
            component=f"packing, {case}, level 3 with itself",
            quantity=quantity,
            levels="v3-v3",
            actual=a,
            expected=b,
            tolerance=2e-15,
        )


@pytest.mark.parametrize("case", ["gpt2", "llama MQA, biases, D > C/H"])
@pytest.mark.parametrize("packing", [False, True], ids=["plain", "packed"])
def test_shards_in_threads_give_the_loss_and_gradients_of_the_whole_batch(
    monkeypatch: pytest.MonkeyPatch, case: str, packing: bool
) -> None:
    level2, _ = pair(case, torch.float64)
    # The rows count different numbers of labels.
    inputs = arrays(batch(case) | (packed(PACKED) if packing else {}))

    def run(threads: int) -> dict[str, Any]:
        monkeypatch.setattr("v3_numpy_deep.models.sharding.available_threads", lambda: threads)
        model = ours_like(level2, case, np.float64)
        loss = model.loss(**inputs)
        (loss * 0.5).backward()
        return {"loss": loss.data} | {name: parameter.grad for name, parameter in model.named_parameters()}

    whole, sharded, again = run(1), run(2), run(2)
    for name in whole:
        np.testing.assert_allclose(sharded[name], whole[name], rtol=1e-15, atol=1e-14, err_msg=name)
        np.testing.assert_array_equal(sharded[name], again[name])  # the same threads, the same bits


def test_shards_leave_blas_its_threads() -> None:
    before = parallel.available_threads()
    parallel._run(lambda part: part, [1, 2])
    assert parallel.available_threads() == before


@pytest.mark.parametrize("case", CASES)
def test_names_and_initial_weights_are_those_of_level_2(case: str) -> None:
    config = ModelConfig(**CASES[case])
    model = Transformer(config).initialize(5)
    level2 = Transformer2(config_of(case)).initialize(5)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in level2.named_parameters()]
    assert list(model.state_dict()) == list(level2.state_dict())
    assert all(np.array_equal(model.state_dict()[name], w.numpy()) for name, w in level2.state_dict().items())
    assert sum(parameter.size for parameter in model.parameters()) == count_parameters(config)


@pytest.mark.parametrize(
    ("case", "sharded", "dtype"),
    [
        ("gpt2", False, torch.float32),
        ("gpt2", True, torch.bfloat16),
        ("llama MHA, untied", True, torch.float32),
        ("llama MHA, untied", False, torch.float16),
    ],
)
def test_reads_what_the_library_saves(case: str, sharded: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    _, library = pair(case, torch.float32)
    library.library.to(dtype).save_pretrained(tmp_path, max_shard_size="20KB" if sharded else "1GB")
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == sharded
    model = load_model(tmp_path)
    for name, weight in library.library.float().state_dict().items():
        np.testing.assert_array_equal(model.state_dict()[name], weight.numpy())
        assert model.state_dict()[name].dtype == np.float32


@pytest.mark.parametrize("case", ["gpt2", "gpt2 untied, exact gelu", "llama GQA, llama3 rope"])
def test_writes_what_the_library_and_level_2_read(case: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = Transformer(ModelConfig(**CASES[case])).initialize(0)
    save_model(model, tmp_path / "v3")
    level2 = load_model2(tmp_path / "v3")
    save_model2(level2, tmp_path / "v2")
    assert sorted(path.name for path in (tmp_path / "v3").iterdir()) == sorted(
        path.name for path in (tmp_path / "v2").iterdir()
    )
    for name in ("config.json", "generation_config.json"):
        assert (tmp_path / "v3" / name).read_text() == (tmp_path / "v2" / name).read_text()
    ids = batch(case)["input_ids"]
    with no_grad(), torch.no_grad():
        logits = model(ids.numpy()).data
        library = AutoModelForCausalLM.from_pretrained(tmp_path / "v3")(ids).logits.numpy()
    np.testing.assert_allclose(logits, library, rtol=0, atol=5e-5)
    np.testing.assert_array_equal(load_model(tmp_path / "v2")(ids.numpy()).data, logits)
