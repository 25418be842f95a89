"""Replies and the command `chat`: the same words at three levels, the oldest turns forgotten, commands obeyed."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from shared_data.errors import UserError
from shared_data.model_files.config import ModelConfig
from shared_data.model_files.config import ModelConfig as Config3
from shared_data.runs import RunFolder
from shared_data.settings import SPECIAL_TOKENS, load_settings
from shared_data.story_world.tasks import questions
from v1_quick.data_pipeline.tokenizer.tokenizer import Tokenizer as Tokenizer1
from v1_quick.evaluation.metrics import answers as answers1
from v1_quick.inference import chat as chat1
from v1_quick.models.config import ModelConfig as Config1
from v1_quick.models.transformer import Transformer as Transformer1
from v2_handwritten.data_pipeline.tokenizer.bpe_train import train_bpe
from v2_handwritten.data_pipeline.tokenizer.tokenizer import Tokenizer as Tokenizer2
from v2_handwritten.evaluation.metrics import answers as answers2
from v2_handwritten.inference import chat as chat2
from v2_handwritten.models.checkpoint import save_model
from v2_handwritten.models.transformer import Transformer as Transformer2
from v3_numpy_deep.data_pipeline.tokenizer.tokenizer import Tokenizer as Tokenizer3
from v3_numpy_deep.evaluation.metrics import answers as answers3
from v3_numpy_deep.inference import chat as chat3
from v3_numpy_deep.models.transformer import Transformer as Transformer3

CHATS, ANSWERS = (chat1, chat2, chat3), (answers1, answers2, answers3)
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
    save_model(Transformer2(config).initialize(0), path)
    return path


@pytest.fixture(scope="module")
def levels(folder: Path) -> list[tuple[Any, Any]]:
    """(model, tokenizer) of each level, in float64 so that no tie is broken by rounding."""
    two = Transformer2(ModelConfig.from_hf(_config(folder))).initialize(0).double()
    one = Transformer1(Config1.from_hf(_config(folder))).initialize(0).to(torch.float64)
    three = Transformer3(Config3.from_hf(_config(folder))).initialize(0).to("float64")
    return list(
        zip(
            (one, two, three),
            (level.load(folder) for level in (Tokenizer1, Tokenizer2, Tokenizer3)),
            strict=True,
        )
    )


def _config(folder: Path) -> dict[str, Any]:
    from shared_data.files import read_json

    return read_json(folder / "config.json")


def test_three_levels_reply_the_same_words_and_stream_what_they_reply(levels: list[tuple[Any, Any]]) -> None:
    replies = []
    for chat, (model, tokenizer) in zip(CHATS, levels, strict=True):
        heard: list[str] = []
        replies.append(chat.reply(model, tokenizer, CONVERSATIONS, max_new_tokens=24, on_text=heard.append))
        assert "".join(heard) == replies[-1][0]
        assert all(token not in text for text in replies[-1] for token in ("<|im_end|>", "<|endoftext|>"))
    assert replies[0] == replies[1] == replies[2]
    assert replies[0][0] != replies[0][1]


def test_an_exam_counts_exact_replies_by_kind(
    levels: list[tuple[Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = list(islice(questions(2, "test"), 12))
    for answers, (model, tokenizer) in zip(ANSWERS, levels, strict=True):
        given = [task.reply if number % 3 else "No idea." for number, task in enumerate(tasks)]

        def recite(_: Any, __: Any, asked: list, given: list = given, **___: Any) -> list[str]:
            prompts = [task.prompt for task in tasks]
            return [f" {given[prompts.index(messages[-1]['content'])]}" for messages in asked]

        monkeypatch.setattr(answers, "reply", recite)
        result = answers.answer_questions(model, tokenizer, tasks, batch_size=5)
        assert result.accuracy == pytest.approx(8 / 12)
        right = [task.kind for number, task in enumerate(tasks) if number % 3]
        assert result.by_kind == {
            kind: right.count(kind) / sum(task.kind == kind for task in tasks)
            for kind in sorted({task.kind for task in tasks})
        }
        assert [record["prompt"] for record in result.records] == [task.prompt for task in tasks]


def test_commands_are_obeyed_and_the_conversation_is_remembered(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings("smoke", ["generate.max_new_tokens=5", "generate.temperature=0"])
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
    for level, chat in zip(("v1", "v2", "v3"), CHATS, strict=True):
        asked: list[list[dict[str, str]]] = []

        def listen(_: Any, __: Any, conversations: list, asked: list = asked, **options: Any) -> list[str]:
            asked.append([dict(message) for message in conversations[0]])
            options["on_text"]("Yes.")
            return ["Yes."]

        monkeypatch.setattr(chat, "reply", listen)
        written: list[str] = []
        run = RunFolder(level, settings, tmp_path / level)
        chat.chat_command(settings, run, folder, lines, written.append)
        contents = [[message["content"] for message in messages] for messages in asked]
        assert contents == [["Be brief.", "Hi"], ["Be brief.", "Hi", "Yes.", "And?"], ["Be brief.", "Who?"]]
        text = "".join(written)
        assert text.count("Yes.\n") == 3
        assert "[no command /dance; there are /reset, /system TEXT and /quit]" in text


def test_the_oldest_turns_are_forgotten_and_the_system_message_stays(levels: list[tuple[Any, Any]]) -> None:
    long = [{"role": "system", "content": "Be kind."}]
    for number in range(30):
        long += [
            {"role": "user", "content": f"Question {number}?"},
            {"role": "assistant", "content": "Yes, so it is."},
        ]
    long.append({"role": "user", "content": "The last one?"})
    for chat, (model, tokenizer) in zip(CHATS, levels, strict=True):
        kept = chat.forget_oldest(model, tokenizer, long)
        assert kept[0] == long[0]
        assert kept[1]["role"] == "user"
        assert kept[1:] == long[-len(kept) + 1 :]
        assert len(chat.encode_chat(tokenizer, kept)) <= 512 * 3 // 4
        assert len(chat.encode_chat(tokenizer, [kept[0], *long[-len(kept) - 1 :]])) > 512 * 3 // 4
        with pytest.raises(UserError, match="fills all 512 positions"):
            chat.forget_oldest(model, tokenizer, [{"role": "user", "content": "word " * 600}])
