"""DPO at all levels: losses, rewards, gradients; the batch of pairs; against trl's DPOTrainer, ten steps in lockstep; bad pairs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from v2_handwritten.align.algorithms.log_probabilities import frozen_copy
from v3_numpy_deep.align.algorithms.log_probabilities import frozen_copy as frozen_arrays

from shared_data.errors import UserError
from tests.parity.arrays import array
from tests.parity.inference_cases import trio
from tests.parity.model_cases import gradients
from tests.parity.preference_cases import PAD, doubles, dpo_trainer, pairs, trl_batch, trl_metrics
from tests.parity.recorder import ParityRecorder
from v1_quick.align.algorithms import dpo as v1
from v2_handwritten.align.algorithms import dpo as v2
from v2_handwritten.models.transformer import Transformer
from v2_handwritten.pretrain.components.optimizers import AdamW
from v3_numpy_deep.align.algorithms import dpo as v3
from v3_numpy_deep.autograd import Tensor, no_grad
from v3_numpy_deep.models.transformer import Transformer as ArrayTransformer
from v3_numpy_deep.pretrain.components.optimizers import AdamW as ArrayAdamW

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
    islands = 5e-6 if case.startswith("llama") else 2e-14
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
            3e-14,
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
                # trl counts the accuracy in float32
                tolerance=max(tolerance, 3e-9) if quantity == "metrics" and levels == "v2-v1" else tolerance,
            )


def test_ten_steps_in_lockstep_at_all_levels(parity: ParityRecorder, tmp_path: Path) -> None:
    """The same pairs, AdamW, ten steps: trl's trainer, level 2 and level 3 end at the same loss and the same weights."""
    library, library_reference, model, reference, arrays, array_reference = models_of("gpt2")
    trainer = dpo_trainer(library, library_reference, tmp_path, beta=0.3)
    settings: dict[str, Any] = {"betas": (0.9, 0.95), "weight_decay": 0.1}
    library_optimizer = torch.optim.AdamW(library.library.parameters(), lr=1e-3, eps=1e-8, **settings)
    parameters, array_parameters = list(model.parameters()), list(arrays.parameters())
    optimizer = AdamW([{"parameters": parameters, "weight_decay": 0.1}], 1e-3, (0.9, 0.95), 1e-8)
    array_optimizer = ArrayAdamW(
        [{"parameters": array_parameters, "weight_decay": 0.1}], 1e-3, (0.9, 0.95), 1e-8
    )
    records = [dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), pair, strict=True)) for pair in pairs()]
    batch = v2.preference_batch(pairs(), PAD, 32)
    before = [parameter.clone() for parameter in reference.parameters()]
    losses: list[list[float]] = []
    for _ in range(10):
        step_losses = (
            trainer.compute_loss(library.library, trl_batch(trainer, records)),
            torch_loss(model, reference, batch, beta=0.3)[0],
            array_loss(arrays, array_reference, batch, beta=0.3)[0],
        )
        losses.append([loss.item() for loss in step_losses])
        for loss, stepper in zip(step_losses, (library_optimizer, optimizer, array_optimizer), strict=True):
            loss.backward()
            stepper.step()
            stepper.zero_grad()
    curves = np.array(losses)
    assert curves[-1, 1] < 0.5 * curves[0, 1]  # it learns
    weights = [
        np.concatenate([np.ravel(state[name]) for name in model.state_dict()])
        for state in (library.library.state_dict(), model.state_dict(), arrays.state_dict())
    ]
    for levels, i, j in (("v2-v1", 1, 0), ("v2-v3", 2, 1)):
        for quantity, a, b in (
            ("loss of ten steps", curves[:, i], curves[:, j]),
            ("weights after ten steps", weights[i], weights[j]),
        ):
            parity(
                component="DPOTrainer, lockstep, gpt2",
                quantity=quantity,
                levels=levels,
                actual=a,
                expected=b,
                tolerance=5e-15 if quantity.startswith("loss") else 1e-10,
            )
    # The reference is where it was: training the policy has not moved it.
    assert all(torch.equal(a, b) for a, b in zip(reference.parameters(), before, strict=True))
    assert all(np.array_equal(a.data, b) for a, b in zip(array_reference.parameters(), before, strict=True))


def test_the_policy_may_not_be_its_own_reference() -> None:
    """Trained along, the reference would cancel every change: the loss stays log 2 and nothing is learned."""
    _, _, model, _, _, _ = models_of("gpt2")
    batch = v2.preference_batch(pairs(), PAD, 32)
    inputs = [torch.from_numpy(x) for x in (batch.input_ids, batch.reply_mask, batch.attention_mask)]
    found = v2.sequence_log_probabilities(model, *inputs).chunk(2)
    with pytest.raises(AssertionError, match="reference must not be trained"):
        v2.dpo_loss(*found, *found)
    array = Tensor(np.ones(2))
    with pytest.raises((AssertionError, TypeCheckError)):
        v3.dpo_loss(array, array, array, array)


def test_before_the_first_step_the_loss_is_log_2_and_the_gradient_is_that_of_a_log_ratio() -> None:
    """The exercise of dpo.md: at h = 0 each pair weighs β/2, and a pair weighs less the better it is ordered."""
    chosen, rejected, fixed = doubles(np.zeros(3)), doubles(np.zeros(3)), torch.zeros(3).double()
    loss, metrics = v2.dpo_loss(chosen, rejected, fixed, fixed, beta=0.3)
    loss.backward()
    assert loss.item() == pytest.approx(np.log(2))
    assert chosen.grad is not None
    np.testing.assert_allclose(chosen.grad * 3, -0.15)
    np.testing.assert_allclose(rejected.grad * 3, 0.15)
    assert metrics["rewards/accuracies"] == 0.0  # a tie is not won
    ordered = doubles(np.array([-5.0, 0.0, 5.0]))
    v2.dpo_loss(ordered, fixed, fixed, fixed, beta=0.3)[0].backward()
    assert ordered.grad is not None
    np.testing.assert_allclose(-ordered.grad * 3, 0.3 / (1 + np.exp(0.3 * np.array([-5.0, 0.0, 5.0]))))


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_is_counted_nowhere(variant: str) -> None:
    """The loss of a batch is the mean of the losses of its pairs, each alone and without padding."""
    _, _, model, reference, arrays, array_reference = models_of("llama GQA")
    options = VARIANTS[variant]
    loss, metrics = torch_loss(model, reference, v2.preference_batch(pairs(), PAD, 32), **options)
    alone = [
        torch_loss(model, reference, v2.preference_batch([pair], PAD, 32), **options) for pair in pairs()
    ]
    assert loss.item() == pytest.approx(np.mean([value.item() for value, _ in alone]), abs=1e-12)
    for name, value in metrics.items():
        assert value == pytest.approx(np.mean([found[name] for _, found in alone]), abs=1e-12)
    array_value, _ = array_loss(arrays, array_reference, v3.preference_batch(pairs(), PAD, 32), **options)
    assert array_value.item() == pytest.approx(loss.item(), abs=1e-12)


@pytest.mark.parametrize("max_length", [32, 9, 8])
def test_batches_equal_those_of_the_collator_of_trl(max_length: int) -> None:
    expected = v1.preference_batch(pairs(), PAD, max_length)
    for level in (v2, v3):
        found = level.preference_batch(pairs(), PAD, max_length)
        for name in ("input_ids", "reply_mask", "attention_mask"):
            assert np.array_equal(getattr(found, name), getattr(expected, name)), name
        assert found.reply_lengths.tolist() == expected.reply_mask.sum(-1).tolist()
    if max_length == 9:  # the first reply loses its end: prompt 4 + reply 6
        assert found.reply_lengths[0] == 5


BAD_PAIRS = {
    "an empty prompt": (([], [5], [6]), "prompt is empty"),
    "an empty chosen reply": (([5], [], [6]), "chosen reply is empty"),
    "an empty rejected reply": (([5], [6], []), "rejected reply is empty"),
    "identical replies": (([5], [6, 7], [6, 7]), "identical"),
    "a reply longer than the context": (([5], [6], [7] * 9), "rejected reply has 9 tokens"),
    "a prompt that leaves no room": (([5] * 8, [6], [7]), "prompt has 8 tokens"),
    "a difference after the context": (
        ([5] * 4, [6] * 5 + [7], [6] * 5 + [8]),
        "differ only after the 8 tokens",
    ),
}


@pytest.mark.parametrize("kind", BAD_PAIRS)
@pytest.mark.parametrize("level", [v1, v2, v3])
def test_a_bad_pair_is_refused_by_its_name(level: Any, kind: str) -> None:
    pair, message = BAD_PAIRS[kind]
    good = ([5, 6], [7], [8])
    with pytest.raises(UserError, match=f"pair 1: .*{message}.*; "):
        level.preference_batch([good, pair], PAD, 8)
    with pytest.raises(UserError, match=f"line 7 of pairs.jsonl: .*{message}"):
        level.preference_batch([good, pair], PAD, 8, names=["line 6 of pairs.jsonl", "line 7 of pairs.jsonl"])
    with pytest.raises(UserError, match="no preference pair"):
        level.preference_batch([], PAD, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.0}, "beta is 0.0"),
        ({"loss_type": "best"}, "unknown DPO loss 'best'"),
        ({"label_smoothing": 0.5}, "label_smoothing is 0.5"),
        ({"loss_type": "hinge", "label_smoothing": 0.1}, "belongs to the sigmoid loss"),
    ],
)
@pytest.mark.parametrize("level", [v2, v3])
def test_settings_that_make_no_loss_are_refused(level: Any, options: dict[str, Any], message: str) -> None:
    settings = {"beta": 0.1, "loss_type": "sigmoid", "label_smoothing": 0.0} | options
    with pytest.raises(UserError, match=message):
        level.check_dpo_settings(**settings)
