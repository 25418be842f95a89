"""DPO at all levels: losses, rewards, gradients; the batch of pairs; against trl's DPOTrainer, ten steps in lockstep; bad pairs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.parity.arrays import array
from tests.parity.inference_cases import trio
from tests.parity.model_cases import gradients
from tests.parity.preference_cases import PAD, doubles, dpo_trainer, pairs, trl_batch, trl_metrics
from tests.parity.recorder import ParityRecorder
from v2_handwritten.align.algorithms import dpo as v2
from v2_handwritten.align.algorithms.log_probabilities import frozen_copy
from v2_handwritten.models.transformer import Transformer
from v3_numpy_deep.align.algorithms import dpo as v3
from v3_numpy_deep.align.algorithms.log_probabilities import frozen_copy as frozen_arrays
from v3_numpy_deep.autograd import Tensor, no_grad
from v3_numpy_deep.models.transformer import Transformer as ArrayTransformer

VARIANTS: dict[str, dict[str, Any]] = {
    "sigmoid": {"beta": 0.3},
    "sigmoid, smoothed": {"beta": 0.3, "label_smoothing": 0.2},
    "hinge": {"beta": 0.1, "loss_type": "hinge"},
    "ipo": {"beta": 0.3, "loss_type": "ipo"},
}
LENGTHS = np.array([3, 1, 7, 4, 2, 5]), np.array([2, 6, 1, 9, 3, 3])


def lengths_for(options: dict[str, Any], chosen: Any, rejected: Any) -> dict[str, Any]:
    ipo = options.get("loss_type") == "ipo"
    return {"chosen_lengths": chosen, "rejected_lengths": rejected} if ipo else {}


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_gradients_and_metrics_agree_at_levels_2_and_3(parity: ParityRecorder, variant: str) -> None:
    options, inputs = VARIANTS[variant], [array(seed, 6, scale=8.0) - 20 for seed in range(4)]
    theirs = [doubles(x) for x in inputs[:2]]
    ours = [Tensor(x.copy(), requires_grad=True) for x in inputs[:2]]
    torch_lengths = lengths_for(options, *map(torch.from_numpy, LENGTHS))
    expected, wanted = v2.dpo_loss(*theirs, *map(torch.from_numpy, inputs[2:]), **options, **torch_lengths)
    loss, metrics = v3.dpo_loss(*ours, *inputs[2:], **options, **lengths_for(options, *LENGTHS))
    expected.backward()
    loss.backward()
    assert list(metrics) == list(wanted)
    for quantity, a, b in (
        ("loss", loss, expected),
        ("metrics", list(metrics.values()), list(wanted.values())),
        *(
            (f"grad {name}", x.grad, y.grad)
            for name, x, y in zip(("chosen", "rejected"), ours, theirs, strict=True)
        ),
    ):
        parity(
            component=f"dpo, {variant}",
            quantity=quantity,
            levels="v2-v3",
            actual=a,
            expected=b,
            tolerance=1e-15,
        )


def trl_options(variant: str) -> dict[str, Any]:
    """How trl is asked for the same. Its sigmoid loss has no smoothing; its aot loss has, and with one pair aot is sigmoid."""
    return VARIANTS[variant] | ({"loss_type": "aot"} if "smoothed" in variant else {})


def models_of(case: str) -> tuple[Any, Any, Transformer, Transformer, ArrayTransformer, ArrayTransformer]:
    """Policies and frozen references of levels 1, 2, 3; the policy has moved away from the reference."""
    library, model, arrays = trio(case)
    library_reference, reference, array_reference = trio(case)[0], frozen_copy(model), frozen_arrays(arrays)
    with torch.no_grad():
        for seed, (name, parameter) in enumerate(model.named_parameters()):
            change = array(seed, *parameter.shape, scale=0.03)
            parameter += torch.from_numpy(change)
            dict(library.library.named_parameters())[name] += torch.from_numpy(change)
            dict(arrays.named_parameters())[name].data += change
    return library, library_reference, model, reference, arrays, array_reference


def torch_loss(model: Any, reference: Any, batch: v2.PreferenceBatch, **options: Any) -> Any:
    """Level 2's loss of a batch, as a training step computes it."""
    inputs = [torch.from_numpy(x) for x in (batch.input_ids, batch.reply_mask, batch.attention_mask)]
    with torch.no_grad():
        fixed = v2.sequence_log_probabilities(reference, *inputs).chunk(2)
    found = v2.sequence_log_probabilities(model, *inputs).chunk(2)
    counts = torch.from_numpy(batch.reply_lengths).chunk(2)
    return v2.dpo_loss(*found, *fixed, **options, **lengths_for(options, *counts))


def array_loss(model: Any, reference: Any, batch: v2.PreferenceBatch, **options: Any) -> Any:
    """Level 3's."""
    inputs, B = (batch.input_ids, batch.reply_mask, batch.attention_mask), len(batch.input_ids) // 2
    with no_grad():
        fixed = v3.sequence_log_probabilities(reference, *inputs).data
    found = v3.sequence_log_probabilities(model, *inputs)
    counts = batch.reply_lengths[:B], batch.reply_lengths[B:]
    return v3.dpo_loss(found[:B], found[B:], fixed[:B], fixed[B:], **options, **lengths_for(options, *counts))


def scaled(found: dict[str, Any], expected: dict[str, Any]) -> np.ndarray:
    """All gradients in a row, each divided by the largest element of the expected one."""
    assert found.keys() == expected.keys()
    return np.concatenate(
        [np.ravel(np.asarray(found[n]) / np.abs(np.asarray(expected[n])).max()) for n in expected]
    )


@pytest.mark.parametrize("case", ["gpt2", "llama GQA"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_metrics_and_every_gradient_equal_trl(
    parity: ParityRecorder, variant: str, case: str, tmp_path: Path
) -> None:
    """DPOTrainer.compute_loss on a padded batch of tiny models, at level 1; the same batch at levels 2 and 3."""
    library, library_reference, model, reference, arrays, array_reference = models_of(case)
    trainer = dpo_trainer(library, library_reference, tmp_path, **trl_options(variant))
    chosen_pairs = pairs()[:1] if "smoothed" in variant else pairs()
    records = [
        dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), pair, strict=True)) for pair in chosen_pairs
    ]
    expected = trainer.compute_loss(library.library, trl_batch(trainer, records))
    expected.backward()

    batch = v2.preference_batch(chosen_pairs, PAD, 32)
    loss, metrics = torch_loss(model, reference, batch, **VARIANTS[variant])
    array_value, array_metrics = array_loss(arrays, array_reference, batch, **VARIANTS[variant])
    loss.backward()
    array_value.backward()
    theirs = trl_metrics(trainer)
    ours, wanted = gradients(model), gradients(library)
    found = {name: parameter.grad for name, parameter in arrays.named_parameters()}
    islands = 2e-5 if case.startswith("llama") else 2e-13
    for levels, tolerance, values in (
        (
            "v2-v1",
            islands,
            {
                "loss": (loss, expected),
                "metrics": (list(metrics.values()), [theirs[name] for name in metrics]),
                "every gradient": (scaled(ours, wanted), scaled(wanted, wanted)),
            },
        ),
        (
            "v2-v3",
            2e-13,
            {
                "loss": (array_value, loss),
                "metrics": (list(array_metrics.values()), list(metrics.values())),
                "every gradient": (scaled(found, ours), scaled(ours, ours)),
            },
        ),
    ):
        for quantity, (a, b) in values.items():
            parity(
                component=f"DPOTrainer, {variant}, {case}",
                quantity=quantity,
                levels=levels,
                actual=a,
                expected=b,
                tolerance=max(tolerance, 1e-7) if quantity == "metrics" and levels == "v2-v1" else tolerance,
            )
