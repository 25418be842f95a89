"""`generation_config.json` of a model from elsewhere decides how it is sampled, where the user has not."""

import json
from pathlib import Path
from typing import Any

import pytest

from shared_data.errors import UserError
from shared_data.inference.generation_config import read_sampling, sample_as_asked
from shared_data.model_files.folder import read_config
from shared_data.runs import RunFolder
from shared_data.settings import load_settings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = {
        "model_type": "llama",
        "vocab_size": 300,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "eos_token_id": 2,
    }
    config |= {"num_attention_heads": 1, "intermediate_size": 8, "tie_word_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def asks(folder: Path, **values: Any) -> None:
    (folder / "generation_config.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("values", "sampling", "asked"),
    [
        ({"eos_token_id": 2}, {}, []),
        ({"do_sample": False}, {"temperature": 0.0}, []),
        ({"do_sample": True}, {"temperature": 1.0, "top_k": 50, "top_p": 1.0}, []),
        (
            {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 0},
            {"temperature": 0.6, "top_k": None, "top_p": 0.9},
            [],
        ),
        (
            {"repetition_penalty": 1.1, "no_repeat_ngram_size": 3, "stop_strings": "\n\n"},
            {"repetition_penalty": 1.1, "no_repeat_ngram_size": 3, "stop_strings": ["\n\n"]},
            [],
        ),
        (
            {"min_new_tokens": 4, "min_length": 0, "guidance_scale": 1.5},
            {},
            ["min_new_tokens = 4", "guidance_scale = 1.5"],
        ),
        (
            {"do_sample": True, "top_k": 0, "min_p": 0.1, "typical_p": 0.9},
            {"temperature": 1.0, "top_k": None, "top_p": 1.0, "min_p": 0.1, "typical_p": 0.9},
            [],
        ),
        (
            {"num_beams": 4, "length_penalty": 2.0, "early_stopping": "never"},
            {"temperature": 0.0, "num_beams": 4, "length_penalty": 2.0, "early_stopping": "never"},
            [],
        ),
        (
            {"num_beams": 4, "do_sample": True, "sequence_bias": [[[5], 2.0], [[6, 7], -1.0]]},
            {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "logit_bias": {5: 2.0}},
            ["sequence_bias = [[6, 7], -1.0]", "num_beams = 4 with do_sample"],
        ),
        ({"penalty_alpha": 0.6}, {}, ["penalty_alpha = 0.6"]),
    ],
)
def test_what_the_file_asks_for(
    folder: Path, values: dict[str, Any], sampling: dict[str, Any], asked: list[str]
) -> None:
    asks(folder, **values)
    assert read_sampling(folder) == (sampling, asked)


def test_the_user_s_choice_comes_first(folder: Path, tmp_path: Path) -> None:
    asks(folder, do_sample=True, temperature=0.6, top_p=0.9)
    run = RunFolder("v2", load_settings("smoke"), tmp_path / "run")
    sample_as_asked(run, folder, ["generate.top_p=0.95"])
    section = run.settings.generate
    assert (section.temperature, section.top_k, section.top_p) == (0.6, 50, 0.95)


@pytest.mark.parametrize(
    ("assignments", "sampled"),
    [
        (["generate={top_p = 0.7, top_k = 5}"], (0.6, 5, 0.7)),
        (["generate.temperature=0"], (0.0, 50, 0.9)),
    ],
)
def test_a_choice_in_any_form_comes_first(
    folder: Path, tmp_path: Path, assignments: list[str], sampled: tuple[float, int, float]
) -> None:
    """On this command line, and in what a configuration or an earlier command has set."""
    asks(folder, do_sample=True, temperature=0.6, top_p=0.9)
    for given in (assignments, []):
        run = RunFolder("v2", load_settings("smoke", assignments), tmp_path / "run")
        sample_as_asked(run, folder, given)
        section = run.settings.generate
        assert (section.temperature, section.top_k, section.top_p) == sampled


def test_an_adapter_is_sampled_as_its_base_asks(folder: Path, tmp_path: Path) -> None:
    asks(folder, do_sample=True, temperature=0.6)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    run = RunFolder("v2", load_settings("smoke"), tmp_path / "run")
    sample_as_asked(run, adapter, [])
    assert run.settings.generate.temperature == 0.6


def test_beams_of_the_file_give_way_to_a_temperature_of_the_user_s(folder: Path, tmp_path: Path) -> None:
    asks(folder, num_beams=4, length_penalty=2.0)
    for overrides, beams in ((["generate.temperature=0.5"], 1), (["generate.temperature=0"], 4), ([], 4)):
        run = RunFolder("v2", load_settings("smoke", overrides), tmp_path / "run")
        sample_as_asked(run, folder, overrides)
        assert run.settings.generate.num_beams == beams


def test_a_bias_that_cannot_be_is_one_line(folder: Path) -> None:
    asks(folder, sequence_bias=5)
    with pytest.raises(
        UserError, match=r"generation_config.json: sequence_bias is 5, not a valid list; correct"
    ):
        read_sampling(folder)


def test_values_that_cannot_be_are_one_line(folder: Path, tmp_path: Path) -> None:
    asks(folder, do_sample=True, temperature=-1)
    run = RunFolder("v2", load_settings("smoke"), tmp_path / "run")
    with pytest.raises(
        UserError, match=r"generation_config.json asks for sampling that cannot be .*; correct"
    ):
        sample_as_asked(run, folder, [])


def test_the_ends_that_the_file_names_are_the_model_s(folder: Path) -> None:
    assert read_config(folder).eos_token_id == 2
    asks(folder, eos_token_id=[2, 7])
    assert read_config(folder).eos_token_id == [2, 7]
    asks(folder, eos_token_id=[2, "7"])
    with pytest.raises(
        UserError, match=r"generation_config.json: eos_token_id is \[2, '7'\], not .*; correct"
    ):
        read_config(folder)
