"""Prompts of PPO, GRPO and their evaluation: which are held out, which come next, and with which seed."""

import json
from itertools import islice
from pathlib import Path

import pytest

from shared_data.alignment.prompts import PromptBatches, evaluation_prompts, open_prompts, read_prompts
from shared_data.errors import UserError
from shared_data.settings import SPECIAL_TOKENS, load_settings
from shared_data.story_world import StoryWorld
from shared_data.story_world.prompts import prompts
from shared_data.story_world.questions import split_prompt
from v2_handwritten.data_pipeline.tokenizer.bpe_train import train_bpe


def test_a_batch_has_prompts_ids_and_a_seed_of_its_place_in_the_data() -> None:
    tokenizer = train_bpe(["What is it?"], 280, special_tokens=SPECIAL_TOKENS)
    texts = [f"{number}?" for number in range(5)]
    whole, resumed = (PromptBatches(texts, tokenizer, 2, seed=3) for _ in range(2))
    batches = [whole.next_batch() for _ in range(4)]
    assert [batch.seed for batch in batches] == [3_000_009, 3_000_011, 3_000_013, 3_000_015]
    assert sorted([prompt.text for batch in batches for prompt in batch.prompts][:5]) == texts
    for prompt, ids in zip(batches[0].prompts, batches[0].ids, strict=True):
        assert tokenizer.decode(ids) == f"<|im_start|>user\n{prompt.text}<|im_end|>\n<|im_start|>assistant\n"
    resumed.order.load_state_dict(whole.order.state_dict())
    assert resumed.next_batch() == whole.next_batch()


def in_split(story: str, split: str) -> bool:
    """Whether a split of the story world has this story."""
    try:
        return bool(StoryWorld().derivations(story, split))
    except UserError:
        return False


@pytest.mark.parametrize("stage", ["dpo", "ppo", "grpo"])
def test_evaluation_prompts_are_of_the_test_split_and_never_trained_on(stage: str) -> None:
    settings = load_settings("smoke", [f"{stage}.eval_prompts=30"])
    tokenizer = train_bpe(["What is it?"], 280, special_tokens=SPECIAL_TOKENS)
    held_out = evaluation_prompts(settings, stage, tokenizer, positions=10_000)
    texts = [prompt.text for prompt in held_out]
    assert texts == list(islice(prompts(0, "test", 0.5), 30))
    stories = [parts[0] for text in texts if (parts := split_prompt(text))]
    assert 5 < len(stories) < 25, "questions and requests"
    assert all(in_split(story, "test") and not in_split(story, "train") for story in stories)
    if stage != "dpo":
        train, same = open_prompts(settings, stage, tokenizer, positions=10_000)
        assert same == held_out
        assert (len(train), {prompt.text for prompt in train} & set(texts)) == (40, set())
        trained = [parts[0] for prompt in train if (parts := split_prompt(prompt.text))]
        assert all(in_split(story, "train") and not in_split(story, "test") for story in trained)


def users_prompts(folder: Path, texts: list[str]) -> str:
    """A file of a user's, as a setting of GRPO."""
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return f"grpo.source={file}"


def test_of_a_users_prompts_every_tenth_is_held_out(tmp_path: Path) -> None:
    source = users_prompts(tmp_path, [f"question {n}" for n in range(25)])
    settings = load_settings("smoke", [source, "grpo.eval_prompts=2", "grpo.prompts=25"])
    train, held_out = read_prompts(settings, "grpo")
    assert [prompt.value for prompt in held_out] == ["question 0", "question 10"]
    assert [prompt.value for prompt in train] == [f"question {n}" for n in range(25) if n % 10]
    settings = load_settings("smoke", [users_prompts(tmp_path, ["fine", " "])])
    with pytest.raises(UserError, match=r"prompts.jsonl, line 2 has no text or turns in 'prompt'; it has"):
        read_prompts(settings, "grpo")


@pytest.mark.parametrize(("number", "part"), [(1, "held out"), (7, "to train on")])
def test_a_prompt_too_long_for_the_model_is_named_by_its_record(
    tmp_path: Path, number: int, part: str
) -> None:
    tokenizer = train_bpe(["What is it?"], 280, special_tokens=SPECIAL_TOKENS)
    texts = ["Who?"] * 12
    settings = load_settings("smoke", [users_prompts(tmp_path, texts), "grpo.max_completion_length=50"])
    assert sum(map(len, open_prompts(settings, "grpo", tokenizer, positions=100))) == 12
    texts[number - 1] = "w" * 40
    settings = load_settings("smoke", [users_prompts(tmp_path, texts), "grpo.max_completion_length=50"])
    says = rf"prompts\.jsonl, line {number}: the prompt of \d+ tokens and a completion of up to 50 exceed .* 100 positions; shorten"
    with pytest.raises(UserError, match=says):
        open_prompts(settings, "grpo", tokenizer, positions=100)


@pytest.mark.parametrize("stage", ["dpo", "ppo", "grpo"])
def test_prompts_of_the_story_world_that_do_not_fit_are_named_too(stage: str) -> None:
    tokenizer = train_bpe(["What is it?"], 280, special_tokens=SPECIAL_TOKENS)
    settings = load_settings("smoke")
    with pytest.raises(
        UserError, match=rf"prompt \d+ of the story world: .* lower {stage}\.max_completion_length"
    ):
        evaluation_prompts(settings, stage, tokenizer, positions=64)
