"""Level 2 on a device without float64, as Apple's GPUs are: the CPU, where each operation that makes a float64 tensor is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from shared_data import device
from tests.parity.stage_cases import STAGES, StageRun, prepare
from v2_handwritten import generate
from v2_handwritten.models.checkpoint import load_model, load_reward_model, save_model

QLORA = ('adapter.method="qlora"', "adapter.r=2", "adapter.bnb_4bit_blocksize=32")


class NoFloat64(TorchDispatchMode):
    """Refuses what an Apple GPU refuses."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function == torch.ops.aten.lift_fresh.default:  # an array of NumPy, before it moves to the device
            return result
        made = result if isinstance(result, tuple | list) else [result]
        if any(isinstance(part, torch.Tensor) and part.dtype == torch.float64 for part in made):
            raise TypeError(f"{function} makes a float64 tensor, which the device does not have")
        return result


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the stages' tests, its models in float32."""
    root = prepare(tmp_path_factory.mktemp("prepared") / "run")
    for stage in ("pretrain", "sft"):
        save_model(load_model(root / stage, torch.float32), root / stage)
    save_model(load_reward_model(root / "reward", torch.float32), root / "reward")
    return root


@pytest.mark.parametrize(("stage", "overrides"), [*((stage, ()) for stage in STAGES), ("sft", QLORA)])
def test_every_stage_does_without_float64(
    stage: str, overrides: tuple[str, ...], prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "NO_FLOAT64", {"cpu"})
    with NoFloat64():
        metrics = StageRun("v2", stage, prepared, tmp_path / "run", *overrides)()
    assert metrics["steps"] == 3


@pytest.mark.parametrize("kernels", ["plain", "fused", "library"])
def test_generation_does_without_float64(
    kernels: str, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "NO_FLOAT64", {"cpu"})
    with NoFloat64():
        model = load_model(prepared / "sft", kernels=kernels)
        (ids,) = generate(model, [[1, 2, 3]], max_new_tokens=4, temperature=1.0, top_p=0.9, seed=1)
        filters = {"min_p": 0.01, "typical_p": 0.9, "temperature": 1.0}
        penalties = {"repetition_penalty": 1.1, "frequency_penalty": 0.1, "logit_bias": {5: 1.0}}
        penalties |= {"no_repeat_ngram_size": 2}
        (penalized,) = generate(model, [[1, 2, 3]], max_new_tokens=4, **filters, **penalties)
        (best,) = generate(model, [[1, 2, 3]], max_new_tokens=4, num_beams=3, **penalties)
    assert all(1 <= len(row) <= 4 for row in (ids, penalized, best))
