"""Conversations and the command `chat`: the same words at every level, the oldest turns forgotten, commands obeyed."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from shared_data.errors import UserError
from shared_data.evaluation.answers import answer_questions
from shared_data.files import read_json
from shared_data.inference.chat import chat, complete_chat, forget_oldest
from shared_data.inference.prompts import encode_chat, stop_ids
from shared_data.model_files.config import ModelConfig
from shared_data.runs import RunFolder
from shared_data.settings import SPECIAL_TOKENS, load_settings
from shared_data.story_world.tasks import questions
from v2_handwritten.data_pipeline.tokenizer.bpe_train import train_bpe
from v2_handwritten.data_pipeline.tokenizer.tokenizer import load_tokenizer
from v2_handwritten.inference.chat import chat_command
from v2_handwritten.inference.generate import generate
from v2_handwritten.models.checkpoint import save_model
from v2_handwritten.models.transformer import new_model
from v3_numpy_deep.data_pipeline.tokenizer.tokenizer import load_tokenizer as load_tokenizer3
from v3_numpy_deep.inference.chat import chat_command as chat_command3
from v3_numpy_deep.inference.generate import generate as generate3
from v3_numpy_deep.models.transformer import new_model as new_model3

CONVERSATIONS = [
    [{"role": "user", "content": "Hello?"}],
    [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Tom."},
        {"role": "user", "content": "Why is that, and since when?"},
    ],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights with its tokenizer, as a Hugging Face folder."""
    path = tmp_path_factory.mktemp("model")
    texts = [task.prompt for task in islice(questions(1, "train"), 50)]
    train_bpe(texts, 400, special_tokens=SPECIAL_TOKENS).save(path)
    config = ModelConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        initializer_range=0.5,
        eos_token_id=0,
    )
    save_model(new_model(config), path)
    return path


@pytest.fixture(scope="module")
def levels(folder: Path) -> list[tuple[Any, Any, Any]]:
    """(generate, model, tokenizer) of each level, in float64 so that no tie is broken by rounding; one with the library's tokenizer."""
    config = ModelConfig.from_hf(read_json(folder / "config.json"))
    model = new_model(config).double()
    return [
        (generate, model, load_tokenizer(folder)),
        (generate3, new_model3(config).to("float64"), load_tokenizer3(folder)),
        (generate, model, AutoTokenizer.from_pretrained(folder)),
    ]


def test_every_level_writes_the_same_words_and_streams_what_it_writes(
    levels: list[tuple[Any, Any, Any]],
) -> None:
    completions = []
    for level_generate, model, tokenizer in levels:
        written: list[str] = []
        completions.append(
            complete_chat(level_generate, model, tokenizer, CONVERSATIONS, written.append, max_new_tokens=24)
        )
        assert "".join(written) == completions[-1][0]
        assert all(token not in text for text in completions[-1] for token in ("<|im_end|>", "<|endoftext|>"))
    assert completions[0] == completions[1] == completions[2]
    assert completions[0][0] != completions[0][1]


def reciting(tokenizer: Any, answers: dict[str, str]) -> Any:
    """A `generate` that knows what follows each prompt by heart, and the prompts that it was called with."""
    prompts: list[str] = []

    def generate(model: Any, inputs: list[list[int]], *, on_token: Any, **_: Any) -> list[list[int]]:
        texts = [tokenizer.decode(ids) for ids in inputs]
        prompts.extend(texts)
        new_ids = [
            [
                *tokenizer.encode(next(a for q, a in answers.items() if f"{q}<|im_end|>" in text)),
                *tokenizer.encode("<|im_end|>"),
            ]
            for text in texts
        ]
        for row, ids in enumerate(new_ids):
            for id in ids:
                on_token(row, id)
        return new_ids

    return generate, prompts


def test_answers_count_where_they_are_exact_and_by_kind(levels: list[tuple[Any, Any, Any]]) -> None:
    tasks = list(islice(questions(2, "test"), 12))
    answers = {t.prompt: f" {t.reply}" if number % 3 else "No idea." for number, t in enumerate(tasks)}
    _, model, tokenizer = levels[0]
    generate, prompts = reciting(tokenizer, answers)
    result = answer_questions(generate, model, tokenizer, tasks, batch_size=5)
    assert len(prompts) == 12
    assert result.accuracy == pytest.approx(8 / 12)
    right = [task.kind for number, task in enumerate(tasks) if number % 3]
    assert result.by_kind == {
        kind: right.count(kind) / sum(task.kind == kind for task in tasks)
        for kind in sorted({task.kind for task in tasks})
    }
    assert [record["prompt"] for record in result.records] == [task.prompt for task in tasks]


def test_commands_are_obeyed_and_the_conversation_is_remembered(levels: list[tuple[Any, Any, Any]]) -> None:
    lines = [
        "/system Be brief.\n",
        "Hi\n",
        "\n",
        "And?\n",
        "/reset\n",
        "Who?\n",
        "/dance\n",
        "/quit\n",
        "never\n",
    ]
    _, model, tokenizer = levels[0]
    generate, prompts = reciting(tokenizer, dict.fromkeys(("Hi", "And?", "Who?"), "Yes."))
    written: list[str] = []
    chat(generate, model, tokenizer, load_settings("smoke").generate, lines, written.append)
    beginning = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
    end = "<|im_end|>\n<|im_start|>assistant\n"
    assert prompts == [
        f"{beginning}Hi{end}",
        f"{beginning}Hi{end}Yes.<|im_end|>\n<|im_start|>user\nAnd?{end}",
        f"{beginning}Who?{end}",
    ]
    text = "".join(written)
    assert text.count("Yes.\n") == 3
    assert "[no command /dance; there are /reset, /system TEXT and /quit]" in text


def test_the_command_answers_with_the_model_of_a_folder(folder: Path, tmp_path: Path) -> None:
    settings = load_settings("smoke", ["generate.max_new_tokens=5", "generate.temperature=0"])
    texts = []
    for level, command in (("v2", chat_command), ("v3", chat_command3)):
        written: list[str] = []
        command(settings, RunFolder(level, settings, tmp_path / level), folder, ["Hi\n"], written.append)
        texts.append("".join(written))
    assert texts[0] == texts[1] != "\n"


def test_an_answer_ends_before_a_stop_string_and_its_limit_is_named(
    levels: list[tuple[Any, Any, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Written, remembered and returned is the text before the stop string; only the limit is worth a line."""
    level_generate, model, tokenizer = levels[0]
    section = load_settings("smoke", ["generate.temperature=0", "generate.max_new_tokens=6"]).generate
    free: list[str] = []
    chat(level_generate, model, tokenizer, section, ["Hello?\n"], free.append)
    assert capsys.readouterr().err == "[stopped after 6 tokens; --max-new-tokens raises the limit]\n"
    text = "".join(free)
    stop = next(text[i : i + 2] for i in range(2, len(text)) if "\ufffd" not in text[i : i + 2])
    cut: list[str] = []
    stopped = section.model_copy(update={"stop_strings": [stop]})
    chat(level_generate, model, tokenizer, stopped, ["Hello?\n"], cut.append)
    assert "".join(cut) == text.partition(stop)[0] + "\n"
    assert capsys.readouterr().err == ""
    options = {"max_new_tokens": 6, "stop_strings": [stop]}
    (answer,) = complete_chat(level_generate, model, tokenizer, CONVERSATIONS[:1], **options)
    assert answer + "\n" == "".join(cut)


def test_the_oldest_turns_are_forgotten_and_the_system_message_stays(
    levels: list[tuple[Any, Any, Any]],
) -> None:
    tokenizer = levels[0][2]
    long = [{"role": "system", "content": "Be kind."}]
    for number in range(30):
        long += [
            {"role": "user", "content": f"Question {number}?"},
            {"role": "assistant", "content": "Yes, so it is."},
        ]
    long.append({"role": "user", "content": "The last one?"})
    kept = forget_oldest(tokenizer, long, positions=512)
    assert kept[0] == long[0]
    assert kept[1]["role"] == "user"
    assert kept[1:] == long[-len(kept) + 1 :]
    assert len(encode_chat(tokenizer, kept)) <= 512 * 3 // 4
    assert len(encode_chat(tokenizer, [kept[0], *long[-len(kept) - 1 :]])) > 512 * 3 // 4
    with pytest.raises(
        UserError, match=r"the message has 1,\d\d\d tokens .* at most 511 fit into this model; shorten it"
    ):
        forget_oldest(tokenizer, [{"role": "user", "content": "word " * 600}], positions=512)


def test_a_completion_ends_with_its_turn_or_with_the_text(levels: list[tuple[Any, Any, Any]]) -> None:
    """The end of the turn comes first: it is what a finished completion ends with."""
    for _, model, tokenizer in levels:
        assert stop_ids(model, tokenizer) == [3, 0]
