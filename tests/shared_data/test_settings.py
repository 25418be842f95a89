"""Settings: every mistake is one line that names cause and remedy; what is printed can be read back."""

import tomllib
from pathlib import Path

import pytest

from shared_data.errors import UserError
from shared_data.settings import (
    Section,
    Settings,
    available_configs,
    load_settings,
    seed_overrides,
    settings_to_toml,
)


@pytest.mark.parametrize("name", available_configs())
def test_every_configuration_loads_and_is_named_after_its_file(name: str) -> None:
    assert load_settings(name).name == name


def test_the_promised_configurations_exist() -> None:
    assert {"smoke", "tiny", "tiny-zh", "small", "gpt2-124m", "llama-1b"} <= set(available_configs())


def test_the_default_configuration_sets_at_most_forty_values() -> None:
    sections = tomllib.loads(Path("shared_data/configs/tiny.toml").read_text()).values()
    assert sum(map(len, sections)) <= 40


MISTAKES = {
    "pretrain.max_step=3": r"unknown setting 'pretrain.max_step' in tiny; did you mean 'max_steps'\?",
    "nonsense.x=3": "unknown setting 'nonsense' in tiny; known here: name, device",
    "pretrain.max_steps=many": r"bad setting pretrain.max_steps: .*integer.*\(given 'many'\); correct it",
    "pretrain.max_steps=1.5": "bad setting pretrain.max_steps",
    "pretrain.max_steps=0": "bad setting pretrain.max_steps: .*greater than or equal to 1",
    "pretrain.max_steps=": "bad setting pretrain.max_steps: .*None",
    "pretrain=3": "bad setting pretrain",
    "pretrain.max_steps.x=3": "'max_steps' is a value, not a section",
    "pretrain.learning_rate=nan": "bad setting pretrain.learning_rate",
    "pretrain.learning_rate=inf": "bad setting pretrain.learning_rate",
    "model.num_attention_heads=5": "hidden_size 128 is not a multiple of num_attention_heads 5; change one",
    "model.num_key_value_heads=3": "num_attention_heads 4 is not a multiple of num_key_value_heads 3; change one",
    "model.head_dim=7": "head size is 7, an odd number; change",
    "model.model_type=bert": "bad setting model.model_type: 'bert' is not supported; choose one of gpt2, llama, mistral",
    "pretrain.sequence_length=4096": "sequence_length 4096 is above model.max_position_embeddings 2048; lower",
    "tokenizer.vocab_size=255": "bad setting tokenizer.vocab_size: .*256",
    "tokenizer.vocab_size=257": "vocab_size 257 is below 260",
    "tokenizer.special_tokens=[]": "bad setting tokenizer.special_tokens",
    'tokenizer.special_tokens=["a","a"]': "special_tokens .*twice",
    "data.max_megabytes=-1": "bad setting data.max_megabytes",
    "data.encoding=utf-9": "unknown encoding 'utf-9'",
    "name=a/b": "must be usable as a folder name",
    "steps": "is not KEY=VALUE; write for example",
    "=3": "is not KEY=VALUE",
    "data.source=\udcff.txt": "is not UTF-8; rename the file",
    "pretrain.max_steps=1"
    + 23 * "0": "bad setting pretrain.max_steps: 10{19}… is no integer of 64 bits; correct",
    "generate.temperature=1e-320": "bad setting generate.temperature: .*; choose 0, which is greedy",
    "ppo.temperature=1e-320": "bad setting ppo.temperature: .*greater than or equal to 0[.]0{29}1 ",
    "grpo.temperature=1e300": "bad setting grpo.temperature: .*less than or equal to 10{30} ",
}


@pytest.mark.parametrize("assignment", MISTAKES)
def test_a_mistake_is_one_line_with_cause_and_remedy(assignment: str) -> None:
    with pytest.raises(UserError, match=MISTAKES[assignment]) as caught:
        load_settings("tiny", [assignment])
    assert "\n" not in str(caught.value)
    assert ";" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[pretrain\n", "not valid TOML"),
        (b"\xff\xff", "not valid TOML"),
        (b"pretrain = 3", "bad setting pretrain"),
    ],
)
def test_a_damaged_configuration_file_is_a_user_error(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "mine.toml").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_settings(tmp_path / "mine.toml")


def test_a_missing_configuration_names_those_that_exist() -> None:
    with pytest.raises(UserError, match=r"no configuration 'tinny'; use one of .*smoke.*tiny"):
        load_settings("tinny")


def test_overrides_are_read_as_toml_and_else_as_text() -> None:
    settings = load_settings(
        "tiny",
        [
            "data.source=my file.txt",
            "pretrain.max_steps=7",
            'generate.prompts=["a", "b"]',
            "generate.top_p=none",
        ],
    )
    assert settings.data.source == "my file.txt"
    assert settings.pretrain.max_steps == 7
    assert settings.generate.prompts == ["a", "b"]
    assert settings.generate.top_p is None


@pytest.mark.parametrize("documented", [False, True])
@pytest.mark.parametrize("name", available_configs())
def test_printed_settings_read_back_as_the_same_settings(name: str, documented: bool, tmp_path: Path) -> None:
    settings = load_settings(
        name, ['generate.prompts=["say \\"hi\\"\\n", "☃\\u007f"]', "data.text_field=none_of_these"]
    )
    path = tmp_path / "copy.toml"
    path.write_text(settings_to_toml(settings, documented), encoding="utf-8")
    assert load_settings(path) == settings


def test_none_is_a_value_where_a_setting_has_it_and_absence_where_it_may_be_absent() -> None:
    overrides = ["grpo.scale_rewards=none", "sft.adapter.method=none", "ppo.missing_eos_penalty=None"]
    settings = load_settings("tiny", overrides)
    assert settings.grpo.scale_rewards == settings.sft.adapter.method == "none"
    assert settings.ppo.missing_eos_penalty is None


def test_a_setting_that_is_on_by_default_stays_switched_off_in_a_file(tmp_path: Path) -> None:
    settings = load_settings("tiny", ["generate.top_p=none"])
    path = tmp_path / "copy.toml"
    path.write_text(settings_to_toml(settings), encoding="utf-8")
    assert load_settings(path).generate.top_p is None


def test_one_seed_reaches_every_stage() -> None:
    settings = load_settings("tiny", seed_overrides(7))
    assert (settings.data.seed, settings.pretrain.seed, settings.generate.seed) == (7, 7, 7)


SEEDS = [assignment.partition("=")[0] for assignment in seed_overrides(0)]


@pytest.mark.parametrize("key", SEEDS)
def test_a_seed_has_at_most_32_bits(key: str) -> None:
    load_settings("tiny", [f"{key}={2**32 - 1}"])
    for seed in (-1, 2**32, 10**23):
        with pytest.raises(UserError, match=rf"bad setting {key}: .*; correct"):
            load_settings("tiny", [f"{key}={seed}"])


def test_every_setting_is_documented() -> None:
    def undocumented(section: type[Section]) -> list[str]:
        missing = []
        for name, field in section.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
                missing += undocumented(field.annotation)
            elif not field.description:
                missing.append(f"{section.__name__}.{name}")
        return missing

    assert undocumented(Settings) == []
