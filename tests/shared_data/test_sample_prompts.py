"""Prompts of samples: the user's, else the story world's, else the beginnings of the user's own held-out documents."""

import json
from pathlib import Path

from shared_data.inference.sample_prompts import (
    STORY_PROMPTS,
    beginning,
    example_prompt,
    pretraining_prompt,
    sample_prompts,
)
from shared_data.runs import RunFolder
from shared_data.settings import load_settings, settings_to_toml
from tests.real_files.made_texts import made_text


def run_of(folder: Path, texts: list[str], *overrides: str) -> RunFolder:
    """A run of a user's corpus after the stage `data`, with these held-out documents."""
    run = RunFolder("v2", load_settings("smoke", ["data.source=book.txt", *overrides]), folder)
    lines = (json.dumps({"id": str(number), "text": text}) + "\n" for number, text in enumerate(texts))
    run.documents("validation").write_text("".join(lines), encoding="utf-8")
    return run


def test_a_beginning_is_the_first_words_or_characters() -> None:
    assert beginning("It was the best of times.") == "It was the best"
    assert beginning("“Don't go,” she said.\nNext line") == "“Don't go,” she said"
    assert beginning("\n  第一回：灵根育孕源流出") == "第一回：灵根育"
    assert beginning("กำลังเดินทาง") == "กำลังเดิ", "six characters with their marks"
    assert beginning("— … —") == ""


def test_prompts_come_from_held_out_documents(tmp_path: Path) -> None:
    texts = [
        "话说宝玉听了这话，笑道。",
        "话说宝玉听了这里。",
        "却说众人都来了。",
        "那日天晴，大家游园。",
        "第四个文本在这里。",
    ]
    run = run_of(tmp_path, texts)
    expected = ["话说宝玉听了", "却说众人都来", "那日天晴，大家"]
    assert sample_prompts(run.settings, run) == expected
    assert pretraining_prompt(run.settings, run) == example_prompt(run) == expected[0]
    assert all(made_text("ja", seed).startswith(beginning(made_text("ja", seed))) for seed in range(5))


def test_prompts_of_the_user_and_of_the_story_world_stay(tmp_path: Path) -> None:
    run = run_of(tmp_path, ["Some text."], 'generate.prompts=["", "Hi"]', 'pretrain.sample_prompt=""')
    assert sample_prompts(run.settings, run) == ["", "Hi"]
    assert pretraining_prompt(run.settings, run) == ""
    assert example_prompt(run) == "Hi"
    stories = RunFolder("v2", load_settings("smoke"), tmp_path)
    assert sample_prompts(stories.settings, stories) == STORY_PROMPTS
    assert pretraining_prompt(stories.settings, stories) == "Once"
    without = RunFolder("v2", run_of(tmp_path, []).settings, tmp_path / "no data yet")
    assert sample_prompts(without.settings, without) == STORY_PROMPTS
    assert 'prompts = "none"' in settings_to_toml(without.settings)
