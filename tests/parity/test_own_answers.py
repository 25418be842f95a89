"""The tuned model's own answers, as a reward model is shown them: the same at all levels, in its pairs and under PPO."""

import json
from pathlib import Path
from typing import Any

import pytest

from shared_data.errors import UserError
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from tests.parity.alignment_cases import prepare, run_of
from tests.parity.inference_cases import small_run
from v1_quick.align import own_answers as answers1
from v1_quick.align import ppo_train as ppo1
from v1_quick.align import preference_data as data1
from v1_quick.align import rm_train as rm1
from v1_quick.data_pipeline.tokenizer.tokenizer import Tokenizer as Tokenizer1
from v1_quick.models.checkpoint import load_model as load1
from v2_handwritten.align import own_answers as answers2
from v2_handwritten.align import ppo_train as ppo2
from v2_handwritten.align import preference_data as data2
from v2_handwritten.align import rm_train as rm2
from v2_handwritten.align import scoring as scoring2
from v2_handwritten.data_pipeline.tokenizer.tokenizer import Tokenizer as Tokenizer2
from v2_handwritten.inference.chat import encode_chat
from v2_handwritten.models.checkpoint import load_model as load2
from v2_handwritten.models.reward_model import load_reward_model
from v3_numpy_deep.align import own_answers as answers3
from v3_numpy_deep.align import ppo_train as ppo3
from v3_numpy_deep.align import preference_data as data3
from v3_numpy_deep.align import rm_train as rm3
from v3_numpy_deep.data_pipeline.tokenizer.tokenizer import Tokenizer as Tokenizer3
from v3_numpy_deep.models.checkpoint import load_model as load3

LEVELS = {
    1: (answers1, data1, Tokenizer1, load1),
    2: (answers2, data2, Tokenizer2, load2),
    3: (answers3, data3, Tokenizer3, load3),
}
TOKENS = 6
QUESTIONS = [
    f"{who} the {what}?" for who in ("Where is", "Who has", "What is") for what in ("ball", "cat", "red kite")
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Tokenizer and untrained model of a small run."""
    overrides = ["model.max_position_embeddings=128", "model.initializer_range=0.2"]
    return small_run(tmp_path_factory.mktemp("answers"), *overrides)


@pytest.fixture(autouse=True)
def ends(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """An untrained model never ends a turn. Here every third token ends one, so that some answers end in time."""
    ends = list(range(0, 320, 3))
    for module, *_ in LEVELS.values():
        monkeypatch.setattr(module, "stop_ids", lambda _: ends)
    return set(ends)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def conversations() -> list[list[dict[str, str]]]:
    """Questions, and what is none, or leaves no room."""
    system = {"role": "system", "content": "You answer."}
    earlier = [user("Who is Tom?"), {"role": "assistant", "content": "A cat."}]
    asked = [[user(question)] for question in QUESTIONS]
    others = [[user("Tell a story.")], [user("Is it? Tell me.")], [user("very long " * 60 + "Is it?")]]
    return [*asked, [system, *earlier, user("Where is he? \n")], *others]


@pytest.mark.parametrize("number", LEVELS)
def test_a_question_goes_on_with_the_greedy_answer_if_it_ends_in_time(
    run: RunFolder, ends: set[int], number: int
) -> None:
    module, _, tokenizer_class, load = LEVELS[number]
    folder = run.checkpoint("pretrain")
    given = conversations()
    shown = module.with_own_answers(load(folder), tokenizer_class.load(run.tokenizer), given, TOKENS)
    assert given == conversations(), "what was given is left alone"
    model, tokenizer = load2(folder), Tokenizer2.load(run.tokenizer)
    finished = 0
    for before, after in zip(given, shown, strict=True):
        expected = before[-1]["content"]
        if expected.rstrip().endswith("?") and len(expected) < 200:
            ids = answers2.generate(
                model, [encode_chat(tokenizer, before)], max_new_tokens=TOKENS, eos_token_id=sorted(ends)
            )[0]
            special = set(tokenizer.special_tokens.values())
            if ids[-1] in ends and not special & set(ids[:-1]) and tokenizer.decode(ids[:-1]).strip():
                expected += "\n" + tokenizer.decode(ids[:-1]).strip()
                finished += 1
        assert after == [*before[:-1], user(expected)]
    assert 2 <= finished < len(QUESTIONS), "some end in time and some do not"


def test_no_token_of_the_template_comes_out_of_an_answer(run: RunFolder) -> None:
    tokenizer = Tokenizer2.load(run.tokenizer)
    word, start, end = 100, tokenizer.special_tokens["<|im_start|>"], 99
    assert tokenizer.decode([word]).strip()
    for module, _, tokenizer_class, _ in LEVELS.values():
        tokenizer = tokenizer_class.load(run.tokenizer)
        assert module._finished(tokenizer, [word, end]) == tokenizer.decode([word]).strip()
        assert module._finished(tokenizer, [start, word, end]) == ""
        assert module._finished(tokenizer, [word, word]) == "", "cut off"
        assert module._finished(tokenizer, [end]) == "", "nothing was said"


@pytest.mark.parametrize("number", LEVELS)
def test_answers_that_leave_no_room_are_refused(run: RunFolder, number: int) -> None:
    module, _, tokenizer_class, load = LEVELS[number]
    model, tokenizer = load(run.checkpoint("pretrain")), tokenizer_class.load(run.tokenizer)
    with pytest.raises(UserError, match=r"up to 128 tokens .* 128 positions; lower reward.own_answer_tokens"):
        module.with_own_answers(model, tokenizer, [[user("Is it?")]], 128)


def write_questions(path: Path) -> Path:
    """Pairs of which all but the last are about questions."""
    prompts = [*QUESTIONS, "Tell a story."]
    records = [
        {"prompt": prompt, "chosen": f"It is {n}.", "rejected": "No."} for n, prompt in enumerate(prompts)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize("number", LEVELS)
def test_only_the_prompts_of_pairs_change(run: RunFolder, tmp_path: Path, number: int) -> None:
    module, data, tokenizer_class, load = LEVELS[number]
    source = write_questions(tmp_path / "pairs.jsonl")
    settings = Settings.model_validate(
        {"reward": {"source": str(source), "own_answer_tokens": TOKENS, "pairs": 10, "test_pairs": 9}}
    )
    tokenizer = tokenizer_class.load(run.tokenizer)
    answered = module.answers_for(settings, load(run.checkpoint("pretrain")), tokenizer)
    plain = data.open_preferences(settings, "reward", tokenizer)
    shown = data.open_preferences(settings, "reward", tokenizer, answered)
    two = Tokenizer2.load(run.tokenizer)
    prompts = [[*QUESTIONS[1:], "Tell a story."], QUESTIONS[:1]]  # the first is held out
    changed = 0
    for texts, before, after in zip(prompts, plain, shown, strict=True):
        expected = answers2.with_own_answers(
            load2(run.checkpoint("pretrain")), two, [[user(text)] for text in texts], TOKENS
        )
        assert [list(pair[0]) for pair in after.pairs] == [encode_chat(two, turns) for turns in expected]
        assert [tuple(pair[1:]) for pair in after.pairs] == [tuple(pair[1:]) for pair in before.pairs]
        assert (after.names, after.reasons) == (before.names, before.reasons)
        changed += sum(old[0] != new[0] for old, new in zip(before.pairs, after.pairs, strict=True))
    assert 2 <= changed < len(QUESTIONS)
    off = settings.model_copy(update={"reward": settings.reward.model_copy(update={"own_answer_tokens": 0})})
    assert module.answers_for(off, load(run.checkpoint("pretrain")), tokenizer) is None


@pytest.mark.parametrize("module", [rm1, rm2, rm3])
def test_a_reward_model_is_trained_and_examined_on_prompts_with_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any
) -> None:
    level = module.__name__[:2]
    source = write_questions(tmp_path / "pairs.jsonl")
    overrides = [f"source={source}", f"own_answer_tokens={TOKENS}", "pairs=10", "test_pairs=9", "steps=1"]
    settings, run = run_of(level, prepare(tmp_path / "tuned"), tmp_path, [f"reward.{o}" for o in overrides])
    seen: list[Any] = []
    opened = module.open_preferences

    def listening(*given: Any) -> Any:
        seen.extend(opened(*given))
        return seen

    monkeypatch.setattr(module, "open_preferences", listening)
    module.reward(settings, run)
    tokenizer = Tokenizer2.load(run.tokenizer)
    tuned = load2(run.checkpoint("sft"))
    for preferences, asked in zip(seen, ([*QUESTIONS[1:], "Tell a story."], QUESTIONS[:1]), strict=True):
        expected = answers2.with_own_answers(tuned, tokenizer, [[user(text)] for text in asked], TOKENS)
        assert [list(pair[0]) for pair in preferences.pairs] == [
            encode_chat(tokenizer, turns) for turns in expected
        ]
        assert len(asked) == 1 or expected != [[user(text)] for text in asked]


@pytest.mark.parametrize("module", [ppo1, ppo2, ppo3])
def test_under_ppo_the_reward_model_sees_the_answers_and_the_policy_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any
) -> None:
    """What each reply is worth is what the reward model says of prompt, answer and reply; the prompt of the rollout has no answer.
    The answers stay the tuned model's when the policy has moved far away from it."""
    for answers, *_ in LEVELS.values():  # of these, most answers come to an end
        monkeypatch.setattr(answers, "stop_ids", lambda _: list(range(1, 512, 3)))
    level = module.__name__[:2]
    source = tmp_path / "prompts.jsonl"
    source.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in QUESTIONS))
    overrides = [f"ppo.source={source}", "ppo.reward=reward_model", "ppo.prompts_per_step=8", "ppo.steps=2"]
    overrides += [
        "ppo.learning_rate=0.1",
        "ppo.warmup_steps=0",  # or the first update would move nothing
        "ppo.max_new_tokens=5",
        "ppo.minibatches=1",
        f"reward.own_answer_tokens={TOKENS}",
    ]
    settings, run = run_of(level, prepare(tmp_path / "tuned"), tmp_path, overrides)
    asked: list[list[int]] = []
    scored: list[tuple[list[int], list[int], float]] = []
    original = module.model_score

    def listening(reward_model: Any, prompts: Any) -> Any:
        score = original(reward_model, prompts)

        def heard(replies: list[list[int]]) -> Any:
            found = score(replies)
            scored.extend(zip(map(list, prompts), replies, found, strict=True))
            return found

        return heard

    monkeypatch.setattr(module, "model_score", listening)
    if level == "v1":
        reading = module._Reader.forward

        def read(self: Any, input_ids: Any, attention_mask: Any, **rest: Any) -> Any:
            asked.extend(
                row[mask.bool()].tolist() for row, mask in zip(input_ids, attention_mask, strict=True)
            )
            return reading(self, input_ids, attention_mask, **rest)

        monkeypatch.setattr(module._Reader, "forward", read)
    else:
        step = module.ppo_step

        def watched(*given: Any) -> Any:
            asked.extend(given[4])
            return step(*given)

        monkeypatch.setattr(module, "ppo_step", watched)
    module.ppo(settings, run)
    tokenizer, judge = Tokenizer2.load(run.tokenizer), load_reward_model(run.checkpoint("reward"))
    texts = [[user(text)] for text in QUESTIONS]
    shown = answers2.with_own_answers(load2(run.checkpoint("sft")), tokenizer, texts, TOKENS)
    plain, answered = ([encode_chat(tokenizer, turns) for turns in given] for given in (texts, shown))
    assert sum(bare != full for bare, full in zip(plain, answered, strict=True)) > len(QUESTIONS) / 2
    assert len(scored) == len(asked) == 16
    for policy, (prompt, reply_ids, value) in zip(asked, scored, strict=True):
        assert prompt in answered
        given = plain[answered.index(prompt)]
        assert policy == (given + reply_ids if level == "v1" else given)
        (expected,) = scoring2.model_score(judge, [prompt])([reply_ids])
        assert value == pytest.approx(expected, abs=2e-6 if level == "v1" else 1e-14)
