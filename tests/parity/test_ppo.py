"""PPO of levels 2 and 3 against each other and against a whole update of `trl.experimental.ppo.PPOTrainer`; its updates."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shared_data.errors import UserError
from shared_data.settings import PpoSettings
from shared_data.training.parameter_groups import parameter_groups
from tests.parity.arrays import array, integers
from tests.parity.model_cases import pair
from tests.parity.recorder import ParityRecorder
from tests.parity.rl_cases import (
    LENGTHS,
    B,
    T,
    Updates,
    both_levels,
    completion_mask,
    log_probs,
    tiny_tokenizer,
)
from tests.parity.stage_cases import prepare
from tests.parity.training_cases import LEVELS, level_module
from v2_handwritten.align.algorithms import ppo as ppo2
from v2_handwritten.align.algorithms.rollout import Rollout
from v2_handwritten.align.grpo_train import rollout_log_probs
from v2_handwritten.align.ppo_train import rollout_values
from v2_handwritten.models.reward_model import RewardModel
from v2_handwritten.pretrain.components.optimizers import AdamW
from v3_numpy_deep.align.algorithms import ppo as ppo3

OLD = log_probs(1)
NEW, REFERENCE = log_probs(2, near=OLD), log_probs(3, near=OLD)
SCORES, VALUES = array(4, B), array(5, B, T)
NEW_VALUES = VALUES + array(6, B, T, scale=0.3)
DISCOUNTED = {"kl_estimator": "k3", "gamma": 0.9, "lam": 0.8, "whiten_rewards": True}
VARIANTS: dict[str, dict[str, Any]] = {
    "k1": {"kl_estimator": "k1"},
    "k3, discounted, whitened rewards": DISCOUNTED,
}


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(x) for x in arrays]


def experiences(**options: Any) -> tuple[Any, Any]:
    """The same rollouts at levels 2 and 3."""
    given = (OLD, REFERENCE, SCORES, VALUES, completion_mask())
    return ppo2.make_experience(*tensors(*given), **options), ppo3.make_experience(*given, **options)


@pytest.mark.parametrize("variant", VARIANTS)
def test_experience_of_levels_2_and_3_is_equal(parity: ParityRecorder, variant: str) -> None:
    (experience2, metrics2), (experience3, metrics3) = experiences(**VARIANTS[variant])
    assert metrics2.keys() == metrics3.keys()
    pairs = {
        "advantages": (experience2.advantages, experience3.advantages),
        "returns": (experience2.returns, experience3.returns),
        "metrics": ([*metrics2.values()], [*metrics3.values()]),
    }
    parity.each(pairs, component=f"ppo, {variant}", levels="v2-v3", tolerance=3e-15)


def test_losses_and_gradients_of_levels_2_and_3_are_equal(parity: ParityRecorder) -> None:
    (experience2, _), (experience3, _) = experiences()
    losses = partial(ppo2.ppo_loss, experience=experience2), partial(ppo3.ppo_loss, experience=experience3)
    learned = {"new": NEW, "new_values": NEW_VALUES}
    (value2, metrics2, grads2), (value3, metrics3, grads3) = both_levels(*losses, learned, {})
    assert min(metrics2["policy/clipfrac"], metrics2["val/clipfrac"]) > 0, "both losses should clip"
    assert metrics2.keys() == metrics3.keys()
    pairs = {
        "loss": (value2, value3),
        "metrics": ([*metrics2.values()], [*metrics3.values()]),
        "grad log p": (grads2["new"], grads3["new"]),
        "grad values": (grads2["new_values"], grads3["new_values"]),
    }
    parity.each(pairs, component="ppo, minibatch", levels="v2-v3", tolerance=3e-15)


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening_equals_the_library(parity: ParityRecorder, shift_mean: bool) -> None:
    """The mask in the type of x, or the library would round its n / (n - 1) to float32."""
    from trl.experimental.ppo.ppo_trainer import masked_whiten

    x, mask = tensors(array(7, B, T) + 3, completion_mask())
    parity(
        component=f"ppo, whitening{'' if shift_mean else ', mean kept'}", quantity="output", levels="v2-v1",
        actual=ppo2.whiten(x, mask, shift_mean),
        expected=masked_whiten(x, mask.to(x.dtype), shift_mean).masked_fill(~mask.bool(), 0), tolerance=2e-15,
    )  # fmt: skip


# --- traps ------------------------------------------------------------------------------------------------------------


def test_advantages_are_sums_of_discounted_errors() -> None:
    """The exercise of ppo.md: λ = 1 is the return minus the value, λ = 0 the error of one step."""
    rewards, values, mask = tensors(array(1, 1, 5), array(2, 1, 5), completion_mask((5,), 5))
    monte_carlo, returns = ppo2.generalized_advantages(rewards, values, mask, gamma=1.0, lam=1.0)
    to_come = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(monte_carlo, to_come - values, rtol=0, atol=1e-14)
    torch.testing.assert_close(returns, to_come, rtol=0, atol=1e-14)
    one_step, _ = ppo2.generalized_advantages(rewards, values, mask, gamma=0.9, lam=0.0)
    following = torch.nn.functional.pad(values[:, 1:], (0, 1))
    torch.testing.assert_close(one_step, rewards + 0.9 * following - values, rtol=0, atol=1e-14)


def test_padding_neither_has_nor_sends_an_advantage_whatever_its_width() -> None:
    """GAE across padding, whitening over padding: garbage and more columns there, and every number stays what it was."""
    results = []
    for garbage, extra in ((0.0, 0), (1e3, 5)):
        mask = completion_mask(LENGTHS[1:], T + extra)
        judged = ppo2.value_mask(torch.from_numpy(mask)).numpy()
        filled = [
            np.where(counted, np.pad(x[1:], ((0, 0), (0, extra))), sign * garbage)
            for x, counted, sign in ((OLD, mask == 1, 1), (REFERENCE, mask == 1, -1), (VALUES, judged, 1))
        ]
        given = tensors(*filled[:2], SCORES[1:], filled[2], mask)
        experience, metrics = ppo2.make_experience(*given, whiten_rewards=True)
        assert not experience.advantages[given[-1] == 0].any()
        counted = experience.advantages[given[-1] == 1]
        assert (counted.mean().item(), counted.std().item()) == pytest.approx((0, 1), abs=1e-7)
        new = experience.log_probs + 0.25 * experience.advantages.sign()
        loss, log = ppo2.ppo_loss(new, experience.values + 0.3, experience)
        returns = experience.returns[:, :T][torch.from_numpy(judged[:, :T])]
        results.append([loss.item(), *log.values(), *metrics.values(), *counted.tolist(), *returns.tolist()])
    np.testing.assert_allclose(*results, rtol=1e-12, atol=1e-14)


def test_leaving_the_reference_costs_and_does_not_pay() -> None:
    """The sign of the KL: a policy that likes its own tokens better than the reference does is fined for each."""
    for module, wrap in ((ppo2, torch.from_numpy), (ppo3, np.asarray)):
        likes, mask = wrap(np.full((1, 3), -0.5)), wrap(completion_mask((3,), 3))
        doubts, nothing = wrap(np.full((1, 3), -2.0)), wrap(np.zeros(1))
        assert (module.token_rewards(likes, doubts, nothing, mask) < 0).all()
        assert (module.token_rewards(doubts, likes, nothing, mask) > 0).all(), "k1 may be negative"
        for policy, reference in ((likes, doubts), (doubts, likes)):
            assert (module.token_rewards(policy, reference, nothing, mask, kl_estimator="k3") < 0).all()


def test_both_kl_estimates_have_the_kl_as_their_mean() -> None:
    policy, reference = (torch.log_softmax(torch.from_numpy(array(seed, 1, 8)), 1) for seed in (1, 2))
    divergence = (policy.exp() * (policy - reference)).sum()
    for estimator in ("k1", "k3"):
        estimates = ppo2.token_kl(policy, reference, torch.ones(1, 8, dtype=torch.int64), estimator)
        torch.testing.assert_close((policy.exp() * estimates).sum(), divergence, rtol=1e-12, atol=0)


def test_the_score_is_paid_once_where_the_completion_is_over() -> None:
    """After the last token where the row has room, on it where not; whatever the length."""
    for module, wrap in ((ppo2, torch.from_numpy), (ppo3, np.asarray)):
        lengths = (7, 3, 6, 0)
        zeros, ones, mask = np.zeros((B, T)), np.ones(B), completion_mask(lengths)
        rewards = np.asarray(module.token_rewards(*map(wrap, (zeros, zeros, ones, mask))))
        assert np.argwhere(rewards).tolist() == [[0, 6], [1, 3], [2, 6], [3, 0]]
        finished = wrap(np.array([False, True, True, True]))
        penalized = np.asarray(module.penalize_missing_eos(wrap(ones), finished, 1.5))
        assert penalized.tolist() == [-0.5, 1, 1, 1]
        assert module.penalize_missing_eos(wrap(ones), finished, None) is not None


def test_float32_stays_float32_in_numpy() -> None:
    given = [x.astype(np.float32) for x in (OLD, REFERENCE, SCORES, VALUES)]
    experience, _ = ppo3.make_experience(*given, completion_mask(), whiten_rewards=True)
    assert {field.dtype for field in experience[:4]} == {np.dtype(np.float32)}
    finished = np.ones(B, bool)
    assert ppo3.penalize_missing_eos(given[2], finished, 1.0).dtype == np.float32


# --- a whole update of the library's trainer ----------------------------------------------------------------------------

ROWS, WIDTH, END = 8, 6, 3
COMPLETION_LENGTHS = (6, 3, 1, 5, 6, 2, 4, 6)  # the end included; rows 0 and 7 do not end
TEMPERATURE = 0.7
RUNS: dict[str, dict[str, Any]] = {
    "k1, 2 epochs of 2 minibatches": {"num_ppo_epochs": 2, "num_mini_batches": 2, "missing_eos_penalty": 1.0},
    "k3, discounted, whitened rewards": DISCOUNTED | {"num_ppo_epochs": 2, "num_mini_batches": 1},
}

# Measured. The library divides whole numbers, n / (n - 1), in float32: exact for the 33 tokens of these completions, not for the
# 38 places whose rewards the second run whitens. Adam then enlarges what is different in
# gradients near 0.
TOLERANCES = {
    "k1, 2 epochs of 2 minibatches": {"experience": 2e-15, "gradients": 4e-15, "weights": 4e-12},
    "k3, discounted, whitened rewards": {"experience": 2e-8, "gradients": 1e-7, "weights": 1e-5},
}
LEARNING_RATE = 1e-2


def given_completions() -> torch.Tensor:
    """Random tokens with the end where a completion ends, and more tokens after it, as the library's sampler leaves them."""
    completions = integers(11, 92, ROWS, WIDTH) + 4
    for row, length in enumerate(COMPLETION_LENGTHS):
        if row not in (0, 7):
            completions[row, length - 1] = END
    return torch.from_numpy(completions)


class Recorded:
    """The models before the update, and all that the trainer computed on its way."""

    def __init__(self) -> None:
        self.models: dict[str, Any] = {}
        self.ids = torch.empty(0)
        self.calls: dict[str, list[Any]] = {
            name: [] for name in ("get_reward", "masked_whiten", "permutation", "gradients", "losses", "log")
        }


def run_the_trainer(
    monkeypatch: pytest.MonkeyPatch, folder: Path, options: dict[str, Any]
) -> tuple[Any, Recorded]:
    """One update of `PPOTrainer` in float64 on given completions; every step that matters is recorded."""
    from datasets import Dataset
    from transformers import LlamaForSequenceClassification
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    recorded, calls = Recorded(), Recorded().calls
    recorded.calls = calls
    policy = pair("llama GQA")[1].library
    reference = copy.deepcopy(policy)
    value, reward = (_scalar_model(LlamaForSequenceClassification, policy, seed) for seed in (1, 2))
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter += 0.05 * torch.sign(parameter)
    recorded.models = {"policy": copy.deepcopy(policy), "reference": reference, "value": copy.deepcopy(value)}

    def given_generation(model: Any, queries: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        recorded.ids = torch.cat([queries, given_completions()], 1)
        logits = ppo_trainer.forward(model, recorded.ids, 0).logits
        return recorded.ids, logits[:, queries.shape[1] - 1 : -1] / (TEMPERATURE + 1e-7)

    def spy(module: Any, name: str) -> None:
        original = getattr(module, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            result = original(*arguments, **keywords)
            calls[name].append((arguments, result))
            return result

        monkeypatch.setattr(module, name, call)

    monkeypatch.setattr(ppo_trainer, "batch_generation", given_generation)
    for module, name in (
        (ppo_trainer, "get_reward"),
        (ppo_trainer, "masked_whiten"),
        (np.random, "permutation"),
    ):
        spy(module, name)
    np.random.seed(0)
    prompts = [integers(row, 92, 2 + row % 3) + 4 for row in range(ROWS)]
    data = Dataset.from_dict({"input_ids": [prompt.tolist() for prompt in prompts]})
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=str(folder),
            per_device_train_batch_size=ROWS,
            total_episodes=ROWS,
            response_length=WIDTH,
            stop_token="eos",
            temperature=TEMPERATURE,
            kl_coef=0.05,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            num_sample_generations=0,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            **options,
        ),
        processing_class=tiny_tokenizer(),
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=data,
        eval_dataset=data,
    )

    def backward(loss: torch.Tensor) -> None:
        loss.backward()
        calls["losses"].append(loss.item())
        calls["gradients"].append(_gradients(policy, value))

    monkeypatch.setattr(trainer.accelerator, "backward", backward)
    monkeypatch.setattr(trainer, "log", lambda metrics: calls["log"].append(metrics))
    trainer.train()
    return trainer, recorded


def _scalar_model(kind: Any, like: Any, seed: int) -> Any:
    config = copy.deepcopy(like.config)
    config.num_labels, config.pad_token_id = 1, 0
    torch.manual_seed(seed)
    model = kind(config).double()
    return model.eval()


def _gradients(policy: Any, value: Any) -> dict[str, torch.Tensor]:
    named = [
        (f"{kind} {name}", p)
        for kind, m in (("policy", policy), ("value", value))
        for name, p in m.named_parameters()
    ]
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


@pytest.fixture(scope="module", params=RUNS)
def update(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as monkeypatch:
        folder = tmp_path_factory.mktemp("ppo")
        trainer, recorded = run_the_trainer(monkeypatch, folder, RUNS[request.param])
    return request.param, trainer, recorded


def our_experience(recorded: Recorded, options: dict[str, Any]) -> tuple[ppo2.Experience, dict[str, float]]:
    """From the library's scores and values, and the models as they were: log-probabilities, then level 2."""
    prompt_length = recorded.ids.shape[1] - WIDTH
    with torch.no_grad():
        old, reference = (
            _policy_log_probs(recorded.models[name], recorded.ids) for name in ("policy", "reference")
        )
    (_, (values, _, _)), (_, (_, scores, _)) = recorded.calls["get_reward"]
    mask = torch.from_numpy(completion_mask(COMPLETION_LENGTHS, WIDTH))
    finished = torch.tensor(
        [END in row[:n].tolist() for row, n in zip(given_completions(), COMPLETION_LENGTHS, strict=True)]
    )
    scores = ppo2.penalize_missing_eos(scores, finished, options.get("missing_eos_penalty"))
    names = ("kl_estimator", "gamma", "lam", "whiten_rewards")
    return ppo2.make_experience(
        old,
        reference,
        scores,
        values[:, prompt_length - 1 : -1].squeeze(-1),
        mask,
        **{name: options[name] for name in names if name in options},
    )


def test_advantages_and_returns_equal_the_trainers(parity: ParityRecorder, update: Any) -> None:
    name, _, recorded = update
    experience, metrics = our_experience(recorded, RUNS[name])
    (raw, *_), whitened = recorded.calls["masked_whiten"][-1]
    mask, judged = experience.completion_mask.bool(), ppo2.value_mask(experience.completion_mask)
    logged = recorded.calls["log"][0]
    rows = {
        "advantages": (experience.advantages, torch.where(mask, whitened, 0.0)),
        "returns": (experience.returns, raw + torch.where(judged, experience.values, 0.0)),
        "metrics": ([*metrics.values()], [logged[key] for key in metrics]),
    }
    parity.each(
        rows, component=f"ppo, trainer, {name}", levels="v2-v1", tolerance=TOLERANCES[name]["experience"]
    )


def test_losses_gradients_and_weights_equal_the_trainers(parity: ParityRecorder, update: Any) -> None:
    """The minibatches in the trainer's order, with the losses and the optimizer of level 2."""
    name, trainer, recorded = update
    options, tolerances = RUNS[name], TOLERANCES[name]
    experience, _ = our_experience(recorded, options)
    models = torch.nn.ModuleDict({kind: copy.deepcopy(recorded.models[kind]) for kind in ("policy", "value")})
    optimizer = AdamW(parameter_groups(models, weight_decay=0.0), learning_rate=LEARNING_RATE)
    size = ROWS // options["num_mini_batches"]
    losses, gradients, logs = [], [], []
    for _, order in recorded.calls["permutation"]:
        for rows in torch.from_numpy(order).split(size):
            new = _policy_log_probs(models["policy"], recorded.ids[rows])
            values = _values(models["value"], recorded.ids[rows])
            loss, metrics = ppo2.ppo_loss(new, values, experience.rows(rows))
            loss.backward()
            losses.append(loss.item())
            gradients.append(_gradients(models["policy"], models["value"]))
            logs.append(metrics)
            optimizer.step()
            optimizer.zero_grad()

    assert len(losses) == len(recorded.calls["losses"]) == 2 * options["num_mini_batches"]
    weights = {kind: dict(models[kind].named_parameters()) for kind in ("policy", "value")}
    after = {
        "policy": dict(trainer.policy_model.named_parameters()),
        "value": dict(trainer.value_model.named_parameters()),
    }
    logged = recorded.calls["log"][0]
    names = {
        "loss/policy": "loss/policy_avg",
        "loss/value": "loss/value_avg",
        "policy/clipfrac": "policy/clipfrac_avg",
        "val/clipfrac": "val/clipfrac_avg",
    }
    rows = {
        "losses": (losses, recorded.calls["losses"], tolerances["experience"]),
        "metrics of the losses": (
            [np.mean([log[name] for log in logs]) for name in names],
            [logged[name] for name in names.values()],
            5e-8,  # the library keeps these in float32
        ),
    }
    for step, (ours, theirs) in enumerate(zip(gradients, recorded.calls["gradients"], strict=True), 1):
        rows[f"gradients, step {step}"] = (*_flat(ours, theirs), tolerances["gradients"])
    for kind in weights:
        rows[f"weights of the {kind} model after"] = (
            *_flat(weights[kind], after[kind]),
            tolerances["weights"],
        )
    for quantity, (actual, expected, tolerance) in rows.items():
        pairs = {quantity: (actual, expected)}
        parity.each(pairs, component=f"ppo, trainer, {name}", levels="v2-v1", tolerance=tolerance)


def test_the_whole_way_through_our_models_equals_the_trainer(parity: ParityRecorder, update: Any) -> None:
    """Policy, reference and value model of level 2 with the same weights. The library's norms, softmax and RoPE are float32."""
    name, _, recorded = update
    ours = {kind: pair("llama GQA")[0] for kind in ("policy", "reference")}
    ours["value"] = RewardModel(ours["policy"].config).double()
    for kind, model in ours.items():
        model.load_state_dict(recorded.models[kind].state_dict())
    P = recorded.ids.shape[1] - WIDTH
    completions = torch.from_numpy(completion_mask(COMPLETION_LENGTHS, WIDTH))
    rollout = Rollout(
        recorded.ids,
        attention_mask=(recorded.ids != 0).long() * torch.nn.functional.pad(completions, (P, 0), value=1),
        completion_mask=torch.nn.functional.pad(completions, (P, 0)),
        finished=completions.sum(1) < WIDTH,
        prompt_length=P,
    )
    experience, _ = our_experience(recorded, RUNS[name])
    _, order = recorded.calls["permutation"][0]
    rows = torch.from_numpy(order[: ROWS // RUNS[name]["num_mini_batches"]])
    new = rollout_log_probs(ours["policy"], rollout.rows(rows), TEMPERATURE + 1e-7)
    values = rollout_values(ours["value"], rollout.rows(rows))
    loss, _ = ppo2.ppo_loss(new, values, experience.rows(rows))
    loss.backward()
    gradients = _gradients(ours["policy"], ours["value"])
    pairs = {
        "loss": (loss, recorded.calls["losses"][0]),
        "gradients": _flat(gradients, recorded.calls["gradients"][0]),
    }
    parity.each(pairs, component=f"ppo, whole models, {name}", levels="v2-v1", tolerance=4e-6)


def _flat(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """All parameters in a row, in the same order."""
    assert ours.keys() == theirs.keys()
    sides = ([side[name].detach().flatten() for name in ours] for side in (ours, theirs))
    return tuple(torch.cat(side) for side in sides)  # type: ignore[return-value]


def _policy_log_probs(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Of the completions' tokens, tempered as the library does: divided by temperature + 1e-7."""
    logits = _forward(model, ids).logits[:, -WIDTH - 1 : -1] / (TEMPERATURE + 1e-7)
    return torch.log_softmax(logits, -1).gather(-1, ids[:, -WIDTH:].unsqueeze(-1)).squeeze(-1)


def _values(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return model.score(_forward(model.model, ids).last_hidden_state)[:, -WIDTH - 1 : -1, 0]


def _forward(model: Any, ids: torch.Tensor) -> Any:
    real = ids != 0
    positions = (real.cumsum(1) - 1).clamp(min=0)
    return model(input_ids=ids, attention_mask=real, position_ids=positions)


# --- updates -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("prepared") / "run")


def section(**options: Any) -> PpoSettings:
    values = {"max_completion_length": 8, "temperature": 1.0, "learning_rate": 1e-2, "num_mini_batches": 2}
    return PpoSettings(**(values | options))


@pytest.mark.parametrize("level", LEVELS)
def test_better_completions_become_more_probable_and_values_learn(level: str, prepared: Path) -> None:
    updates = Updates(level, prepared, section(learning_rate=1e-3))
    before = updates.weights(updates.reference)
    change, rewards, logs = updates.learn_and_compare()
    assert np.corrcoef(change, rewards)[0, 1] > 0.3
    assert logs[0]["reward"] == pytest.approx(rewards.mean())
    assert np.mean([log["loss/value"] for log in logs[-2:]]) < np.mean(
        [log["loss/value"] for log in logs[:2]]
    )
    np.testing.assert_array_equal(updates.weights(updates.reference), before)


@pytest.mark.parametrize("level", LEVELS)
def test_an_update_that_is_done_again_is_the_same(level: str, prepared: Path) -> None:
    """What resuming relies on: the seed of the batch decides everything."""
    results = []
    for _ in range(2):
        updates = Updates(level, prepared, section())
        results.append(
            (updates.learn(1), updates.weights().tolist(), updates.weights(updates.value_model).tolist())
        )
    assert results[0] == results[1]


@pytest.mark.parametrize("level", LEVELS)
def test_scores_are_of_the_text_without_its_end_beside_the_prompt(level: str, prepared: Path) -> None:
    seen: list[tuple[str, str]] = []

    def reward(prompts: list[str], completions: list[str]) -> list[float]:
        seen.extend(zip(prompts, completions, strict=True))
        return [float(len(text)) for text in completions]

    updates = Updates(level, prepared, section(max_completion_length=40), reward)
    _, metrics = next(updates.losses())
    assert sorted(prompt for prompt, _ in seen) == sorted(each.text for each in updates.batches.prompts)
    assert metrics["reward"] == pytest.approx(np.mean([len(text) for _, text in seen]))
    assert not any("<|im_end|>" in text or "<|endoftext|>" in text for _, text in seen)


@pytest.mark.parametrize("level", LEVELS)
def test_a_reward_that_does_not_apply_is_refused(level: str, prepared: Path) -> None:
    updates = Updates(
        level, prepared, section(), lambda prompts, completions: [1.0, *[None] * (len(completions) - 1)]
    )
    with pytest.raises(UserError, match="None for completion 2; PPO needs a number for every completion"):
        next(updates.losses())


def test_a_reward_model_scores_a_completion_in_a_batch_as_alone(
    parity: ParityRecorder, prepared: Path
) -> None:
    """Read at padding instead of the last real token, every score but the longest row's would change."""
    rows = [([5, 6, 7], [17, 18, 19, 3]), ([8], [11, 3]), ([9] * 5, [12] * 9)]
    scores = {}
    for level in LEVELS:
        model = level_module(level, "models.checkpoint").load_reward_model(prepared / "reward")
        row_scores = level_module(level, "align.ppo_train")._row_scores
        scores[level], scores[f"{level} alone"] = (
            row_scores(model, rows),
            [row_scores(model, [x])[0] for x in rows],
        )
    for one in ("v3", "v2 alone", "v3 alone"):
        pairs = {"scores": (scores[one], scores["v2"])}
        parity.each(pairs, component="reward model of a rollout", levels=f"v2-{one}", tolerance=8e-15)
