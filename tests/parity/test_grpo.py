"""GRPO of levels 2 and 3 against each other and against the methods of `trl.GRPOTrainer` on a tiny model; its updates."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shared_data.alignment.reward_values import as_floats, reward_metrics
from shared_data.errors import UserError
from shared_data.settings import GrpoSettings
from tests.parity.arrays import array
from tests.parity.model_cases import gradients, pair
from tests.parity.recorder import ParityRecorder
from tests.parity.rl_cases import B, T, Updates, both_levels, completion_mask, log_probs, tiny_tokenizer
from tests.parity.stage_cases import prepare
from tests.parity.training_cases import LEVELS
from v2_handwritten.align.algorithms import grpo as grpo2
from v3_numpy_deep.align.algorithms import grpo as grpo3

LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo")
SCALES = ("group", "batch", "none")
OLD = log_probs(1)
NEW, REFERENCE = log_probs(2, near=OLD, scale=0.6), log_probs(3, near=OLD)
ADVANTAGES = np.array([1.2, -0.4, -0.7, 0.5])
CLIP = {"epsilon": 0.2, "epsilon_high": 0.28, "max_completion_length": 16}
# What the trainer samples in these tests: four completions of different lengths, two to each prompt.
PROMPTS = [[5, 6, 7, 8], [5, 6, 7, 8], [9, 4], [9, 4]]
COMPLETIONS = [[11, 12, 13, 14, 15, 16, 3], [21, 22, 3], [31, 32, 33, 34, 35], [3]]
TEMPERATURE = 0.8
REWARDS = [1.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize(("beta", "unbiased"), [(0.0, True), (0.04, True), (0.04, False)])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_loss_gradient_and_metrics_of_levels_2_and_3_are_equal(
    parity: ParityRecorder, loss_type: str, beta: float, unbiased: bool
) -> None:
    constant = {"old": OLD, "reference": REFERENCE, "advantages": ADVANTAGES, "mask": completion_mask()}
    options = CLIP | {
        "loss_type": loss_type,
        "beta": beta,
        "use_bias_correction_kl": unbiased,
        "num_items": 40,
    }
    (loss2, metrics2, grads2), (loss3, metrics3, grads3) = both_levels(
        grpo2.grpo_loss, grpo3.grpo_loss, {"new": NEW}, constant, **options
    )
    assert metrics2["clip_ratio/low_mean"] > 0, "the case should clip below"
    assert metrics2["clip_ratio/high_mean"] > 0, "the case should clip above"
    assert metrics2.keys() == metrics3.keys()
    pairs = {
        "loss": (loss2, loss3),
        "metrics": ([*metrics2.values()], [*metrics3.values()]),
        "grad log p": (grads2["new"], grads3["new"]),
    }
    component = _component(loss_type, beta, unbiased)
    parity.each(pairs, component=component, levels="v2-v3", tolerance=3e-16)


def test_the_kl_estimate_is_never_negative_and_has_the_kl_as_its_mean() -> None:
    """The exercise of grpo.md. With the sign of the log-ratio turned, the mean is another number."""
    new, reference = (torch.log_softmax(torch.from_numpy(array(seed, 8)), 0) for seed in (1, 2))
    estimates = grpo2.kl_estimate(new[None], reference[None])[0]
    assert (estimates >= 0).all()
    expectation = (new.exp() * estimates).sum()  # over all tokens, each as often as `new` samples it
    torch.testing.assert_close(expectation, (new.exp() * (new - reference)).sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("unbiased", [True, False])
def test_the_gradient_of_the_plain_kl_is_that_of_the_other_direction(unbiased: bool) -> None:
    """Sampled tokens depend on the policy, which autograd does not see; weighed by the ratio, the gradient is the KL's own."""
    counts = torch.tensor([8, 4, 2, 1, 1])  # tokens, each as often as the policy samples it in 16 draws
    tokens = torch.repeat_interleave(torch.arange(5), counts)
    reference = torch.log_softmax(torch.from_numpy(array(2, 5)), 0)
    gradients_by_way = []
    for way in ("sampled", "exact"):
        logits = (counts.double() / 16).log().requires_grad_()
        new = torch.log_softmax(logits, 0)
        if way == "sampled":
            kl, _ = grpo2.grpo_loss(
                new[tokens][None],
                None,
                reference[tokens][None],
                torch.zeros(1, dtype=torch.float64),
                torch.ones(1, 16, dtype=torch.int64),
                beta=1.0,
                use_bias_correction_kl=unbiased,
            )
        elif unbiased:
            kl = (new.exp() * (new - reference)).sum()
        else:
            kl = (reference.exp() * (reference - new)).sum()
        kl.backward()
        gradients_by_way.append(logits.grad)
    torch.testing.assert_close(*gradients_by_way, rtol=0, atol=1e-15)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_neither_what_stands_on_padding_nor_its_width_changes_anything(loss_type: Any) -> None:
    """A mean over the whole array instead of over the mask would fall with every column of padding."""
    results = []
    for garbage, extra in ((0.0, 0), (1e4, 9)):
        mask = completion_mask(width=T + extra)
        filled = [
            torch.from_numpy(np.where(mask == 1, np.pad(x, ((0, 0), (0, extra))), garbage * sign))
            for x, sign in ((NEW, 1), (OLD, -1), (REFERENCE, 1))
        ]
        options = {"beta": 0.1, "loss_type": loss_type, "max_completion_length": 16}
        loss, metrics = grpo2.grpo_loss(
            filled[0].requires_grad_(),
            *filled[1:],
            torch.from_numpy(ADVANTAGES),
            torch.from_numpy(mask),
            **options,
        )
        loss.backward()
        assert not filled[0].grad[torch.from_numpy(mask) == 0].any()  # type: ignore[index]
        results.append((loss.item(), *metrics.values(), filled[0].grad[:, :T].tolist()))  # type: ignore[index]
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-14)


def test_what_a_token_of_a_long_completion_weighs() -> None:
    """grpo: 1 / its completion's length; the other three: as much as any token."""
    mask = torch.from_numpy(completion_mask())
    for loss_type in LOSS_TYPES:
        new = torch.zeros(B, T, dtype=torch.float64, requires_grad=True)
        options = {"loss_type": loss_type, "max_completion_length": 16}
        grpo2.grpo_loss(new, None, None, torch.ones(B, dtype=torch.float64), mask, **options)[0].backward()
        weights = -new.grad[mask == 1]
        lengths = mask.sum(1, keepdim=True).expand(B, T)[mask == 1]
        expected = {
            "grpo": 1 / (B * lengths.double()),
            "bnpo": torch.full_like(weights, 1 / 16),
            "dapo": torch.full_like(weights, 1 / 16),
            "dr_grpo": torch.full_like(weights, 1 / (B * 16)),
        }
        torch.testing.assert_close(weights, expected[loss_type], rtol=1e-15, atol=0)


def test_equal_rewards_teach_nothing() -> None:
    for module, rewards in ((grpo2, torch.full((4,), 0.7)), (grpo3, np.full(4, 0.7, np.float32))):
        for scale in SCALES:
            assert not np.asarray(module.group_advantages(rewards, 2, scale)).any()
        with pytest.raises(AssertionError, match="no groups of 3"):
            module.group_advantages(rewards, 3)


# --- against the library ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """TRL's trainer around a tiny float64 Llama, with completions and rewards that are given."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    _, library = pair("llama GQA")
    trainer = GRPOTrainer(
        model=library.library,
        reward_funcs=lambda prompts, completions, **_: REWARDS,
        args=GRPOConfig(
            output_dir=str(tmp_path_factory.mktemp("grpo")),
            per_device_train_batch_size=4,
            num_generations=2,
            max_completion_length=16,
            temperature=TEMPERATURE,
            epsilon=CLIP["epsilon"],
            epsilon_high=CLIP["epsilon_high"],
            report_to="none",
            use_cpu=True,
            bf16=False,
        ),
        train_dataset=Dataset.from_dict({"prompt": ["t5 t6 t7 t8", "t9 t4"]}),
        processing_class=tiny_tokenizer(),
        rollout_func=lambda prompts, _: {
            "prompt_ids": PROMPTS,
            "completion_ids": COMPLETIONS,
            "logprobs": [[0.0] * len(completion) for completion in COMPLETIONS],
        },
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


@pytest.fixture
def rollout(trainer: Any) -> dict[str, torch.Tensor]:
    """What the trainer makes of the completions: padded ids, masks, advantages."""
    trainer.beta, trainer.scale_rewards = 0.0, "group"  # with a beta it would ask for a reference model
    return trainer._generate_and_score_completions([{"prompt": "given by the rollout"}] * 4)


@pytest.mark.parametrize("scale", SCALES)
def test_advantages_equal_those_of_the_library(parity: ParityRecorder, trainer: Any, scale: Any) -> None:
    """The library keeps rewards in float32."""
    trainer.scale_rewards = scale
    prompts = [{"prompt": "given by the rollout"}] * 4
    library = trainer._generate_and_score_completions(prompts)["advantages"]
    two = grpo2.group_advantages(torch.tensor(REWARDS).double(), 2, scale)
    three = grpo3.group_advantages(np.array(REWARDS), 2, scale)
    for levels, expected, tolerance in (("v2-v1", library, 1e-7), ("v2-v3", three, 1e-15)):
        parity(
            component=f"grpo, scale {scale}", quantity="advantages", levels=levels,
            actual=two, expected=expected, tolerance=tolerance,
        )  # fmt: skip


@pytest.mark.parametrize(
    "rewards", [[1.0, None, 0.25, 0.75], [None, None, 0.0, 1.0], [None] * 3 + [1.0], [None] * 4]
)
@pytest.mark.parametrize("scale", SCALES)
def test_rewards_that_do_not_apply_teach_what_they_teach_in_the_library(
    parity: ParityRecorder, trainer: Any, scale: Any, rewards: list
) -> None:
    trainer.scale_rewards, functions = scale, trainer.reward_funcs
    trainer.reward_funcs = [lambda prompts, completions, **_: rewards]
    prompts = [{"prompt": "given by the rollout"}] * 4
    library = trainer._generate_and_score_completions(prompts)["advantages"]
    trainer.reward_funcs = functions
    two = grpo2.group_advantages(torch.tensor(as_floats(rewards)).double(), 2, scale)
    three = grpo3.group_advantages(np.array(as_floats(rewards)), 2, scale)
    for levels, expected, tolerance in (("v2-v1", library, 1e-7), ("v2-v3", three, 1e-15)):
        parity(
            component=f"grpo, scale {scale}, None among the rewards", quantity="advantages", levels=levels,
            actual=two, expected=expected, tolerance=tolerance,
        )  # fmt: skip


def test_a_reward_that_does_not_apply_leaves_its_group() -> None:
    """The mean of 1, 0 and 0.5 is 0.5 and their deviation 0.5; the completion without a reward has no advantage."""
    rewards = [1.0, 0.0, None, 0.5]
    assert reward_metrics(rewards) == {"reward": 0.5, "reward_std": 0.5}
    assert reward_metrics([None, 1.0]) == {"reward": 1.0}
    assert reward_metrics([None]) == {}
    for advantages in (
        grpo2.group_advantages(torch.tensor(as_floats(rewards)), 4),
        grpo3.group_advantages(np.array(as_floats(rewards), np.float32), 4),
    ):
        assert np.asarray(advantages).dtype == np.float32
        np.testing.assert_allclose(advantages, [0.9998, -0.9998, 0, 0], atol=1e-6)


@pytest.mark.parametrize(("beta", "unbiased"), [(0.0, True), (0.04, True), (0.04, False)])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_loss_gradients_and_metrics_equal_those_of_the_library(
    parity: ParityRecorder,
    trainer: Any,
    rollout: dict[str, torch.Tensor],
    loss_type: Any,
    beta: float,
    unbiased: bool,
) -> None:
    """The same model on both sides, so that what differs is the loss alone."""
    policy = trainer.model
    results = []
    for side in ("ours", "theirs"):
        policy.zero_grad()
        new = _completion_log_probs(lambda ids, mask: policy(ids, attention_mask=mask).logits, rollout)
        old, reference = (
            new.detach() + torch.from_numpy(array(seed, *new.shape, scale=0.3)) for seed in (1, 2)
        )
        if side == "ours":
            options = CLIP | {"beta": beta, "loss_type": loss_type, "use_bias_correction_kl": unbiased}
            mask, advantages = rollout["completion_mask"], rollout["advantages"].double()
            loss, metrics = grpo2.grpo_loss(new, old, reference, advantages, mask, **options)
        else:
            loss = _library_loss(trainer, rollout, old, reference, loss_type, beta, unbiased)
            metrics = {name: trainer._metrics["train"][name][-1] for name in results[0][1]}
        loss.backward()
        results.append((loss.item(), metrics, gradients(policy)))
        policy.zero_grad()  # sets gradients to None: those in the results stay

    assert results[0][1]["clip_ratio/region_mean"] > 0
    component = _component(loss_type, beta, unbiased)
    _compare(parity, component, *results, tolerance=2e-15)


def test_the_whole_way_through_our_model_equals_the_library(
    parity: ParityRecorder, trainer: Any, rollout: dict[str, torch.Tensor]
) -> None:
    """The same weights and completions in each one's model. The library's norms, softmax and RoPE compute in float32."""
    ours, _ = pair("llama GQA")
    new = _completion_log_probs(lambda ids, mask: ours(ids, attention_mask=mask), rollout)
    reference = new.detach() + torch.from_numpy(array(2, *new.shape, scale=0.3))
    advantages = rollout["advantages"].double()
    loss, metrics = grpo2.grpo_loss(new, None, reference, advantages, rollout["completion_mask"], beta=0.04)
    loss.backward()
    trainer.model.zero_grad()
    expected = _library_loss(trainer, rollout, None, reference, "dapo", 0.04, True)
    expected.backward()
    logged = {name: trainer._metrics["train"][name][-1] for name in metrics}
    ours_, theirs = (
        (loss.item(), metrics, gradients(ours)),
        (expected.item(), logged, gradients(trainer.model)),
    )
    _compare(parity, "grpo, whole model", ours_, theirs, tolerance=1e-6)


def test_the_library_divides_by_the_temperature_and_so_do_we(
    parity: ParityRecorder, trainer: Any, rollout: dict[str, torch.Tensor]
) -> None:
    """Log-probabilities of the untempered distribution are another policy's: the ratio would start away from 1."""
    ours, _ = pair("llama GQA")
    ids = torch.cat([rollout["prompt_ids"], rollout["completion_ids"]], 1)
    attention = torch.cat([rollout["prompt_mask"], rollout["completion_mask"]], 1)
    width = rollout["completion_ids"].shape[1]
    theirs, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, attention, width)
    mask = rollout["completion_mask"]
    logits_of = lambda ids, mask: ours(ids, attention_mask=mask)  # noqa: E731
    tempered, plain = (_completion_log_probs(logits_of, rollout, t) for t in (TEMPERATURE, 1.0))
    pairs = {"tempered log p": (tempered * mask, theirs * mask)}
    parity.each(pairs, component="grpo", levels="v2-v1", tolerance=1e-6)
    assert ((plain - theirs) * mask).abs().max() > 0.1


def _component(loss_type: str, beta: float, unbiased: bool) -> str:
    return f"grpo, {loss_type}" + (f", {'unbiased' if unbiased else 'plain'} KL" if beta else "")


def _library_loss(
    trainer: Any, rollout: dict, old: Any, reference: Any, loss_type: str, beta: float, unbiased: bool
) -> torch.Tensor:
    """TRL's own method on a prepared batch; its metrics land in `trainer._metrics`."""
    trainer.loss_type, trainer.beta = loss_type, beta
    trainer.args.use_bias_correction_kl = unbiased
    trainer._metrics["train"].clear()
    batch = rollout | {"ref_per_token_logps": reference}
    return trainer._compute_loss(trainer.model, batch | ({} if old is None else {"old_per_token_logps": old}))


def _compare(parity: ParityRecorder, component: str, ours: Any, theirs: Any, tolerance: float) -> None:
    """Loss, metrics (the library's are float32) and the gradient of every parameter."""
    row = {"component": component, "levels": "v2-v1"}
    parity.each({"metrics": ([*ours[1].values()], [*theirs[1].values()])}, tolerance=1e-7, **row)
    assert ours[2].keys() == theirs[2].keys()
    grads = {f"grad {name}": (gradient, theirs[2][name]) for name, gradient in ours[2].items()}
    parity.each({"loss": (ours[0], theirs[0])} | grads, tolerance=tolerance, **row)


def _completion_log_probs(
    logits_of: Callable, rollout: dict[str, torch.Tensor], temperature: float = TEMPERATURE
) -> torch.Tensor:
    """Log-probabilities of the completions' tokens [B, T]; positions count the padding before a prompt, as the library's do."""
    ids = torch.cat([rollout["prompt_ids"], rollout["completion_ids"]], 1)
    attention = torch.cat([rollout["prompt_mask"], rollout["completion_mask"]], 1)
    width = rollout["completion_ids"].shape[1]
    logits = logits_of(ids, attention)[:, -width - 1 : -1] / temperature
    return torch.log_softmax(logits, -1).gather(-1, rollout["completion_ids"].unsqueeze(-1)).squeeze(-1)


# --- updates -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("prepared") / "run")


def section(**options: Any) -> GrpoSettings:
    values = {"num_generations": 4, "max_completion_length": 8, "temperature": 0.9, "learning_rate": 1e-2}
    return GrpoSettings(**(values | options))


@pytest.mark.parametrize("level", LEVELS)
def test_what_was_better_than_its_group_becomes_more_probable(level: str, prepared: Path) -> None:
    updates = Updates(level, prepared, section(learning_rate=1e-3))
    before = updates.weights(updates.reference)
    change, rewards, logs = updates.learn_and_compare()
    groups = rewards.reshape(4, 4)
    better = (groups - groups.mean(1, keepdims=True)).ravel()
    assert np.corrcoef(change, better)[0, 1] > 0.5
    assert logs[0]["reward"] == pytest.approx(rewards.mean())
    np.testing.assert_array_equal(updates.weights(updates.reference), before)


@pytest.mark.parametrize("level", LEVELS)
def test_nothing_is_clipped_as_long_as_no_weight_moves(level: str, prepared: Path) -> None:
    """Dropout would move the ratio, or another temperature in one of the two log-probabilities."""
    updates = Updates(level, prepared, section(num_iterations=3, temperature=0.5))
    logs = [metrics for _, metrics in updates.losses()]
    assert [log["clip_ratio/region_mean"] for log in logs] == [0, 0, 0]
    assert {log["kl"] for log in logs} == {0}
    assert len({log["entropy"] for log in logs}) == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("level", LEVELS)
def test_a_reward_that_is_no_number_stops_before_any_weight_moves(
    level: str, bad: float, prepared: Path
) -> None:
    updates = Updates(level, prepared, section(), lambda prompts, texts: [0.0] * (len(texts) - 1) + [bad])
    before = updates.weights()
    with pytest.raises(UserError, match=f"gave {bad} for completion 16, .*return a finite number"):
        updates.learn(1)
    np.testing.assert_array_equal(updates.weights(), before)
