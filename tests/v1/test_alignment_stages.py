"""Level 1: what the stages `reward`, `dpo`, `ppo`, `grpo` leave, and where trl is told to do what it does not do by itself."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from v2_handwritten.align.algorithms.log_probabilities import frozen_copy
from v2_handwritten.align.preference_data import PreferenceLoader

from shared_data.errors import UserError
from shared_data.runs import RunFolder
from shared_data.settings import SPECIAL_TOKENS, Settings, load_settings
from shared_data.training.schedulers import learning_rate
from tests.parity.inference_cases import prompts, small_run, trio
from tests.parity.preference_cases import PAD, dpo_trainer, pairs, trl_batch
from v1_quick.align import dpo_train, grpo_train, ppo_train, rm_train
from v1_quick.align.alignment_loop import _without_dropout
from v1_quick.align.preference_data import open_preferences
from v1_quick.data_pipeline.tokenizer.bpe_train import train_bpe
from v1_quick.data_pipeline.tokenizer.tokenizer import Tokenizer
from v1_quick.finetune.chat_data import _library_tokenizer
from v1_quick.inference.chat import stop_ids
from v2_handwritten.align import dpo_train as dpo2
from v2_handwritten.align import ppo_train as ppo2
from v2_handwritten.align import scoring as scoring2
from v2_handwritten.data_pipeline.tokenizer.tokenizer import Tokenizer as Tokenizer2
from v2_handwritten.models.checkpoint import load_model, save_model
from v2_handwritten.models.reward_model import RewardModel, load_reward_model, save_reward_model

MODEL = [
    "model.hidden_size=16",
    "model.intermediate_size=32",
    "model.max_position_embeddings=1024",
    "model.initializer_range=0.2",  # an untrained model with opinions
]
PAIRS = ["pairs=9", "test_pairs=5", "batch_size=2", "gradient_accumulation_steps=2"]
REPLIES = ["prompts=3", "prompts_per_step=4"]  # fewer prompts than a step asks for
EXAM = ["test_prompts=4", "max_new_tokens=8"]
EVERY = ["steps=3", "eval_every=2", "log_every=1", "warmup_steps=0", "learning_rate=1e-2"]
OVERRIDES = {
    "reward": [*EVERY, *PAIRS, "center_coefficient=0.1"],
    "dpo": [*EVERY, *PAIRS, *EXAM, "label_smoothing=0.1"],
    "ppo": [*EVERY, *REPLIES, *EXAM, "minibatches=2", "epochs=2"],
    "grpo": [*EVERY, *REPLIES, *EXAM, "group_size=2", "minibatches=2", "epochs=2", "beta=0.1"],
}
STAGES = {"reward": rm_train.reward, "dpo": dpo_train.dpo, "ppo": ppo_train.ppo, "grpo": grpo_train.grpo}
TRAINING = ["steps", "tokens", "tokens_per_second", "loss"]
EXAMINED = ["before", "after", "kl", "finished_before", "finished"]
EXAMINED += [
    "question_before",
    "question_after",
    "request_before",
    "request_after",
    "right_before",
    "right_after",
]
EXAMINED += ["bits_per_byte_before", "bits_per_byte"]
KEYS = {
    "reward": [*TRAINING, "pairs", "test_pairs", "accuracy", "margin"],
    "dpo": [*TRAINING, "pairs", "accuracy", *EXAMINED],
    "ppo": [*TRAINING, *EXAMINED],
    "grpo": [*TRAINING, *EXAMINED],
}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as after `sft` and `reward` of level 2."""
    run = small_run(tmp_path_factory.mktemp("run"), *MODEL, stories=4)
    shutil.copy(run.documents("test"), run.documents("validation"))
    tokenizer = Tokenizer2.load(run.tokenizer)
    ends = [tokenizer.special_tokens["<|im_end|>"], tokenizer.end_of_text_id]
    model = load_model(run.model("pretrain"))
    model.config = replace(model.config, eos_token_id=ends)
    save_model(model, run.model("sft"), run.tokenizer.parent)
    save_reward_model(RewardModel.from_transformer(model, 1), run.model("reward"), run.tokenizer.parent)
    return run.path


def prepare(tuned: Path, folder: Path, stage: str, *overrides: str) -> tuple[Settings, RunFolder]:
    """Settings, and a copy of the folder to write into."""
    settings = load_settings("smoke", [*MODEL, *(f"{stage}.{o}" for o in (*OVERRIDES[stage], *overrides))])
    shutil.copytree(tuned, folder / "run")
    return settings, RunFolder("v1", settings, folder / "run")


def rows(run: RunFolder, stage: str) -> list[dict[str, Any]]:
    """The log of a stage."""
    return [json.loads(line) for line in (run.stage(stage) / "metrics_log.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_model(folder).state_dict()


def change(before: Path, after: Path) -> float:
    """How far the weight that moved most has moved."""
    old, new = weights(before), weights(after)
    assert old.keys() == new.keys()
    return max((new[name] - old[name]).abs().max().item() for name in old)


@pytest.fixture(scope="module")
def done(
    tuned: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[RunFolder, dict[str, float]]]:
    """Every stage, done once: its folder and what it returned."""
    results = {}
    for stage, function in STAGES.items():
        settings, run = prepare(tuned, tmp_path_factory.mktemp(stage), stage)
        results[stage] = run, function(settings, run)
    return results


@pytest.mark.parametrize("stage", ["dpo", "ppo", "grpo"])
def test_an_aligned_policy_is_a_chat_model_with_its_exam_beside_it(
    done: dict[str, Any], tuned: Path, stage: str
) -> None:
    run, numbers = done[stage]
    folder = run.stage(stage)
    assert list(numbers) == KEYS[stage]
    assert np.isfinite(list(numbers.values())).all()
    assert change(tuned / "sft", folder) > 1e-3
    ends = stop_ids(Tokenizer.load(run.tokenizer))
    for name in ("config.json", "generation_config.json"):
        assert json.loads((folder / name).read_text())["eos_token_id"] == ends
    assert json.loads((folder / "config.json").read_text())["use_cache"]
    assert (folder / "tokenizer.json").exists()
    replies = json.loads((folder / "replies.json").read_text())
    assert len(replies) == 4
    assert np.mean([reply["after_reward"] for reply in replies]) == pytest.approx(numbers["after"])
    logged = rows(run, stage)
    assert [row["step"] for row in logged] == [1, 2, 3]
    assert logged[-1]["tokens"] == numbers["tokens"]
    assert logged[-1]["loss"] == numbers["loss"]


NAMES = {
    "reward": ["accuracy", "margin", "mean_reward", "min_reward", "max_reward"],
    "dpo": ["rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen"],
    "ppo": ["reward", "finished", "objective/kl", "objective/scores", "policy/approxkl", "loss/value"],
    "grpo": ["reward", "reward_std", "reply_tokens", "finished", "kl", "entropy", "clip_ratio/region_mean"],
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_is_logged_under_the_names_of_level_2(done: dict[str, Any], stage: str) -> None:
    run, _ = done[stage]
    for row in rows(run, stage):
        assert {*NAMES[stage], "loss", "gradient_norm", "learning_rate", "tokens"} <= row.keys()
        if stage in ("ppo", "grpo"):
            assert 0 <= row["finished"] <= 1
        if stage == "grpo":
            assert row["finished"] < 0.5 or row["reply_tokens"] < 8, "what ends by itself is short"
        assert ("validation_loss" in row) == (stage in ("reward", "dpo") and row["step"] in (2, 3))


def test_a_reward_model_is_one_of_level_2_and_right_about_as_many_pairs_as_it_says(
    done: dict[str, Any],
) -> None:
    run, numbers = done["reward"]
    assert list(numbers) == KEYS["reward"]
    tokenizer = Tokenizer.load(run.tokenizer)
    _, held_out = open_preferences(run.settings, "reward", tokenizer)
    model = load_reward_model(run.stage("reward")).eval()
    with torch.no_grad():
        scores = [
            [model(torch.tensor([[*pair[0], *pair[part]]])).item() for part in (1, 2)]
            for pair in held_out.pairs
        ]
    margins = np.array(scores) @ [1, -1]
    assert numbers["margin"] == pytest.approx(margins.mean(), abs=1e-6)
    last = rows(run, "reward")[-1]
    assert numbers["accuracy"] == last["validation_accuracy"] == np.mean(margins > 0)
    loss = -torch.nn.functional.logsigmoid(torch.tensor(margins)).mean().item()
    assert last["validation_loss"] == pytest.approx(loss, abs=1e-6), "of the pairs alone: not centred"
    by_reason = json.loads((run.stage("reward") / "accuracy.json").read_text())
    assert np.sum(list(by_reason.values()), axis=0).tolist() == [round(numbers["accuracy"] * 5), 5]


def test_level_2_goes_on_from_what_level_1_leaves(done: dict[str, Any], tmp_path: Path) -> None:
    run, _ = done["dpo"]
    settings, other = prepare(run.path, tmp_path, "ppo", "steps=1")
    shutil.copytree(run.stage("dpo"), other.stage("sft"), dirs_exist_ok=True)
    shutil.copytree(done["reward"][0].stage("reward"), other.stage("reward"), dirs_exist_ok=True)
    numbers = ppo2.ppo(settings, other)
    assert list(numbers) == KEYS["ppo"]
    assert numbers["before"] == pytest.approx(done["dpo"][1]["after"], abs=0.3)


def test_pairs_beyond_the_context_are_cut_at_the_end_as_at_level_2(tuned: Path, tmp_path: Path) -> None:
    settings, run = prepare(tuned, tmp_path, "reward", "max_length=700")
    given, _ = open_preferences(settings, "reward", Tokenizer.load(run.tokenizer))
    longest = max(len(pair[0]) + len(pair[1]) for pair in given.pairs)
    dataset = rm_train._dataset(given, longest - 3)
    assert len(dataset) == len(given.pairs)
    assert max(map(len, dataset["chosen_ids"])) == longest - 3


def test_muon_moves_the_hidden_matrices_of_a_reward_model(tuned: Path, tmp_path: Path) -> None:
    """Each by about the same length at a step, 0.2 η √(AB), but in the last layer, where few positions have a gradient, by less."""
    options = ["optimizer=muon", "schedule=constant", "warmup_steps=0", "steps=1"]
    settings, run = prepare(tuned, tmp_path, "reward", *options)
    before = load_model(run.model("sft")).state_dict()
    rm_train.reward(settings, run)
    after = load_reward_model(run.stage("reward")).state_dict()
    hidden = [
        name for name, weight in after.items() if weight.ndim == 2 and ("attn" in name or "mlp" in name)
    ]
    assert len(hidden) == 7 * settings.model.num_hidden_layers
    for name in hidden:
        moved = (after[name] - before[name]).norm()
        length = 0.2 * settings.reward.learning_rate * after[name].numel() ** 0.5
        assert moved < 1.2 * length, name
        assert moved > 0.6 * length or "layers.1" in name, name


def test_the_learning_rate_of_a_reward_model_falls_late(tuned: Path, tmp_path: Path) -> None:
    options = ["schedule=wsd", "decay_fraction=0.5", "steps=6", "warmup_steps=2"]
    settings, run = prepare(tuned, tmp_path, "reward", *options)
    rm_train.reward(settings, run)
    section = settings.reward
    expected = [
        learning_rate(
            step,
            peak=section.learning_rate,
            total_steps=6,
            warmup_steps=2,
            schedule="wsd",
            min_ratio=section.min_learning_rate_ratio,
            decay_fraction=0.5,
        )
        for step in range(6)
    ]
    assert [row["learning_rate"] for row in rows(run, "reward")] == pytest.approx(expected)
    assert expected.count(section.learning_rate) == 2  # steps 2 and 3: then it falls


@pytest.mark.parametrize("stage", ["reward", "dpo"])
def test_a_wrong_pair_is_named_and_leaves_no_trace(tuned: Path, tmp_path: Path, stage: str) -> None:
    source = tmp_path / "pairs.jsonl"
    records = [{"prompt": "Hi", "chosen": "Hello.", "rejected": word} for word in ("No.", "Go.", "Hello.")]
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    settings, run = prepare(tuned, tmp_path, stage, f"source={source}")
    shutil.rmtree(run.path / stage, ignore_errors=True)
    with pytest.raises(UserError, match=r"pairs\.jsonl, record 3: chosen and rejected reply are identical"):
        STAGES[stage](settings, run)
    assert not (run.path / stage).exists()


def test_a_diverged_run_is_stopped(tuned: Path, tmp_path: Path) -> None:
    settings, run = prepare(tuned, tmp_path, "dpo", "learning_rate=1e30")
    with pytest.raises(UserError, match=r"training diverged: .* at step [23]; lower dpo\.learning_rate"):
        dpo_train.dpo(settings, run)


def test_two_losses_of_the_trainer_make_the_smoothed_one_of_level_2(tmp_path: Path) -> None:
    """The trainer's sigmoid loss has no label smoothing."""
    library, model, _ = trio("gpt2")
    reference_library, reference, _ = trio("gpt2")
    with torch.no_grad():
        for policy in (library, model):  # so that the two differ
            for weight in policy.parameters():
                weight += 0.05 * torch.sin(torch.arange(weight.numel(), dtype=weight.dtype)).view_as(weight)
    section = load_settings("smoke", ["dpo.label_smoothing=0.2"]).dpo
    losses = dpo_train._losses(section)
    trainer = dpo_trainer(
        library,
        reference_library,
        tmp_path,
        loss_type=list(losses),
        loss_weights=list(losses.values()),
        label_smoothing=0.2,
    )
    given = [dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), pair, strict=True)) for pair in pairs()]
    expected = trainer.compute_loss(library.library, trl_batch(trainer, given)).item()
    batch = PreferenceLoader(pairs(), 3, PAD, 32, seed=0, shuffle=False).next_batch()
    fixed = dpo2.batch_log_probabilities(frozen_copy(reference), batch)
    smoothed, plain = (
        dpo2.dpo_batch_loss(model, batch, fixed, label_smoothing=e)[0].item() for e in (0.2, 0.0)
    )
    assert expected == pytest.approx(smoothed, rel=1e-9)
    assert abs(smoothed - plain) > 1e-3


def length(prompts: list[str], replies: list[str]) -> list[float]:
    """A reward that knows which reply is to which prompt."""
    return [len(reply) / 10 + len(prompt) for prompt, reply in zip(prompts, replies, strict=True)]


@pytest.mark.parametrize(
    ("stage", "module", "rows_of_update"), [("ppo", ppo_train, 4), ("grpo", grpo_train, 8)]
)
def test_a_function_of_texts_hears_what_it_is_asked_to_score(
    tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, module: Any, rows_of_update: int
) -> None:
    """PPO's trainer knows reward models only: there a function stands in for one."""
    heard: list[tuple[list[str], list[str], list[float]]] = []

    def listening(prompts: list[str], replies: list[str]) -> list[float]:
        heard.append((prompts, replies, length(prompts, replies)))
        return heard[-1][2]

    monkeypatch.setattr(module, "open_reward", lambda _: listening)
    more = ["missing_end_penalty=3"] if stage == "ppo" else []
    settings, run = prepare(tuned, tmp_path, stage, "reward=story_world", *more)
    numbers = STAGES[stage](settings, run)
    asked, _ = module.open_prompts(settings, stage)
    *updates, before, _ = heard
    for (given, replies, rewards), row in zip(updates, rows(run, stage), strict=True):
        assert len(given) == rows_of_update
        assert len(set(given)) > 1
        assert set(given) <= set(asked)
        assert not any("<|im_end|>" in reply or "<|im_start|>assistant\n" in reply for reply in replies)
        assert row["reward"] == pytest.approx(np.mean(rewards), rel=1e-5), "without the penalty"
        if stage == "ppo":
            assert row["objective/scores"] == pytest.approx(
                row["reward"] - 3 * (1 - row["finished"]), rel=1e-5
            )
    assert numbers["before"] == pytest.approx(np.mean(before[2]), rel=1e-5)


@pytest.mark.parametrize("scored_by", ["story_world", "reward_model"])
def test_values_begin_at_zero_where_another_function_than_the_reward_model_scores(
    tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scored_by: str
) -> None:
    heads: list[torch.Tensor] = []
    train = ppo_train._train

    def listening(model: Any, value_model: Any, *rest: Any) -> None:
        heads.append(value_model.library.score.weight.detach().clone())
        train(model, value_model, *rest)

    monkeypatch.setattr(ppo_train, "_train", listening)
    settings, run = prepare(tuned, tmp_path, "ppo", f"reward={scored_by}", "steps=1")
    ppo_train.ppo(settings, run)
    kept = load_reward_model(run.model("reward")).score.weight
    assert torch.equal(heads[0], torch.zeros_like(kept) if scored_by == "story_world" else kept)


def test_prompts_of_a_user_are_examined_by_the_reward_model(tuned: Path, tmp_path: Path) -> None:
    source = tmp_path / "prompts.jsonl"
    source.write_text("".join(json.dumps({"prompt": f"Tell of {n}."}) + "\n" for n in range(20)))
    settings, run = prepare(tuned, tmp_path, "ppo", f"source={source}", "prompts=20", "steps=1")
    numbers = ppo_train.ppo(settings, run)
    replies = json.loads((run.stage("ppo") / "replies.json").read_text())
    assert [reply["prompt"] for reply in replies] == ["Tell of 0.", "Tell of 10."]
    assert not any(name.startswith(("question", "request")) for name in numbers)
    tokenizer, judge = Tokenizer2.load(run.tokenizer), load_reward_model(run.model("reward"))
    expected = scoring2.model_reward(judge, tokenizer)(
        *([r[k] for r in replies] for k in ("prompt", "after"))
    )
    assert numbers["after"] == pytest.approx(np.mean(expected), abs=1e-6)


@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_a_reward_that_is_no_number_is_named(tuned: Path, tmp_path: Path, stage: str) -> None:
    source = tmp_path / "rewards.py"
    source.write_text("def nothing(prompts, replies):\n    return [None] * len(replies)\n")
    settings, run = prepare(tuned, tmp_path, stage, f"reward={source}:nothing")
    with pytest.raises(UserError, match=r"^nothing gave None for reply 1, .* finite number for every reply$"):
        STAGES[stage](settings, run)


def test_ppo_clips_gradients_which_the_trainer_does_not(tuned: Path, tmp_path: Path) -> None:
    """With an epsilon far above the gradient, Adam's steps are as large as the gradient is."""
    moved = []
    for norm in (0, 1e-6):
        folder = tmp_path / str(norm)
        settings, run = prepare(tuned, folder, "ppo", f"max_grad_norm={norm}", "adam_epsilon=1", "steps=1")
        ppo_train.ppo(settings, run)
        moved.append(change(tuned / "sft", run.stage("ppo")))
        assert rows(run, "ppo")[0]["gradient_norm"] > 1e-2, "as it was before"
    assert moved[1] < 1e-4 * moved[0]


@pytest.mark.parametrize(
    ("stage", "override", "says"),
    [
        ("ppo", "minibatches=3", "4 prompts out to 3 minibatches; .* use level 2 or 3"),
        ("ppo", "whiten_rewards=true", "at least 8 replies, not 2; .* use level 2 or 3"),
        ("grpo", "minibatches=3", "8 replies are not 3 equal parts"),
        ("grpo", "max_new_tokens=1000", "exceed the model's 1024 positions"),
    ],
)
def test_what_the_trainers_cannot_do_is_said_before_anything_is_written(
    tuned: Path, tmp_path: Path, stage: str, override: str, says: str
) -> None:
    settings, run = prepare(tuned, tmp_path, stage, override)
    with pytest.raises(UserError, match=says):
        STAGES[stage](settings, run)
    assert not (run.path / stage).exists()


def test_gpt2_counts_its_positions_from_where_a_padded_prompt_begins() -> None:
    library, _, _ = trio("gpt2")
    ids = prompts("gpt2")[0]
    padded = torch.tensor([[7, 7, 7, *ids]])
    mask = torch.tensor([[0, 0, 0, *[1] * len(ids)]])
    alone = library.library(input_ids=torch.tensor([ids])).logits[0]
    assert not torch.allclose(library.library(input_ids=padded, attention_mask=mask).logits[0, 3:], alone)
    hook = library.library.register_forward_pre_hook(grpo_train._count_positions, with_kwargs=True)
    torch.testing.assert_close(library.library(input_ids=padded, attention_mask=mask).logits[0, 3:], alone)
    hook.remove()


@pytest.mark.parametrize("case", ["gpt2", "llama GQA"])
def test_nothing_is_dropped_while_replies_are_learned_from(case: str) -> None:
    library, _, _ = trio(case)
    for module in library.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    ids = torch.tensor([prompts(case)[2]])
    library.train()
    assert not torch.equal(library(ids), library(ids))
    _without_dropout(library)
    assert torch.equal(library(ids), library(ids))


def test_a_tokenizer_without_padding_pads_with_what_ends_a_text_not_with_what_ends_a_reply() -> None:
    """A reply's score is read at its last token that is no padding, which is <|im_end|>."""
    special = [token for token in SPECIAL_TOKENS if token != "<|pad|>"]
    tokenizer = train_bpe(["a text"], 300, special_tokens=special)
    library = _library_tokenizer(tokenizer)
    assert (library.pad_token, library.eos_token) == ("<|endoftext|>", "<|im_end|>")
