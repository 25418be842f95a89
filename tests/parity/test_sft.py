"""Instruction tuning against transformers and TRL: ids and masks, packing, loss and gradients of `SFTTrainer`, ten steps in lockstep."""

import copy
import json
import logging
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from shared_data.model_files.config import ModelConfig
from shared_data.runs import RunFolder
from shared_data.settings import SPECIAL_TOKENS, load_settings
from shared_data.story_world.conversations import conversations
from shared_data.tokenizer.chat_template import CHAT_TEMPLATE
from shared_data.training.chat_data import PackedConversations, best_fit_rows, encode_conversation
from shared_data.training.sft_data import open_conversations
from tests.parity.model_cases import LibraryModel
from tests.parity.recorder import ParityRecorder
from tests.parity.training_cases import LEVELS, Level, level_module
from v2_handwritten.data_pipeline.tokenizer.bpe_train import train_bpe

LENGTH = 400
CONFIG = ModelConfig(
    vocab_size=400,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=2048,
    initializer_range=0.1,
    eos_token_id=0,
)
Tokenizers = dict[str, Any]


def chats(count: int) -> list[list[dict[str, str]]]:
    return list(islice(conversations(seed=3, questions_per_story=2, request_fraction=0.3), count))


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Tokenizers:
    """One tokenizer in transformers and at levels 2 and 3."""
    texts = [message["content"] for messages in chats(60) for message in messages]
    folder = tmp_path_factory.mktemp("tokenizer")
    train_bpe(texts, 400, special_tokens=SPECIAL_TOKENS).save(folder)
    library = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        chat_template=CHAT_TEMPLATE,
    )
    load = {
        level: level_module(level, "data_pipeline.tokenizer.tokenizer").load_tokenizer for level in LEVELS
    }
    return {"v1": library} | {level: load[level](folder) for level in LEVELS}


TURN = st.text(max_size=12) | st.sampled_from(["", "\n\n", " a", "é", "🙂🙂", "Yes.\n"])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    system=st.none() | TURN,
    turns=st.lists(st.tuples(TURN, TURN), min_size=1, max_size=3),
    open_end=st.booleans(),
)
def test_ids_and_mask_of_any_conversation_are_those_of_transformers(tokenizers, system, turns, open_end):
    messages = [{"role": "system", "content": system}] if system is not None else []
    for user, assistant in turns:
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    if open_end:
        messages.append({"role": "user", "content": "more"})
    options = {"return_dict": True, "return_assistant_tokens_mask": True}
    expected = tokenizers["v1"].apply_chat_template(messages, **options)
    for level in LEVELS:
        example = encode_conversation(tokenizers[level], messages, 10_000)
        assert example.ids.tolist() == expected["input_ids"]
        assert example.trained.astype(int).tolist() == expected["assistant_masks"]


@pytest.fixture(scope="module")
def trainer(tokenizers: Tokenizers, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """TRL's trainer over four conversations, one batch of them."""
    import datasets
    from trl import SFTConfig, SFTTrainer

    for name in ("trl", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    arguments = SFTConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")),
        max_steps=10,
        per_device_train_batch_size=4,
        max_length=LENGTH,
        assistant_only_loss=True,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    return SFTTrainer(
        model=LibraryModel(CONFIG).library,
        args=arguments,
        train_dataset=datasets.Dataset.from_list([{"messages": messages} for messages in chats(4)]),
        processing_class=tokenizers["v1"],
    )


TOOL_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}"
    "{% for call in message.tool_calls or [] %}{{ call.function.name }}{{ call.function.arguments | tojson }}{% endfor %}"
    "{% if 'tool_calls' in message %}!{% endif %}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message.content }}<|im_end|>{% endif %}\n{% endfor %}"
)


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": name, "arguments": arguments}}],
    }


def test_tools_and_calls_reach_the_template_as_they_are_at_every_level(
    tokenizers: Tokenizers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table gives all rows the same keys: with it, arguments of one call would stand as nulls in another."""
    from v1_quick.finetune import sft_train

    class Prepared(sft_train.SFTTrainer):
        def train(self, **_: Any) -> None:
            raise StopIteration(self.train_dataset)

    question, answer = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Tom."}
    schema = {"name": "find", "parameters": {"type": "object", "properties": {"thing": {"type": "string"}}}}
    records: list[dict[str, Any]] = [
        {"messages": [question, call("find", thing="ball"), {"role": "tool", "content": "Tom"}, answer], "tools": [schema]},
        {"messages": [question, call("go", place="home", far=True), answer], "tools": json.dumps([schema | {"strict": True}])},
        {"messages": [question, call("stop")], "functions": [{"name": "stop"}]},
        {"messages": [question, answer]},
    ]  # fmt: skip
    path, folder = tmp_path / "chat.jsonl", tmp_path / "tokenizer"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    library = copy.deepcopy(tokenizers["v1"])
    library.chat_template = TOOL_TEMPLATE
    library.save_pretrained(folder)
    settings = load_settings("smoke", [f"sft.source={path}", "sft.conversations=9"])
    for name, value in (
        ("SFTTrainer", Prepared),
        ("load_tokenizer", lambda _: library),
        ("tokenizer_of", lambda *_: folder),
        ("load_base", lambda *_: LibraryModel(CONFIG).library),
    ):
        monkeypatch.setattr(sft_train, name, value)
    with pytest.raises(StopIteration) as stopped:
        sft_train.sft(settings, RunFolder("v1", settings, tmp_path))
    rows = stopped.value.value
    library_examples = set()
    for row in rows:
        ends = np.cumsum(row["seq_lengths"])[:-1]
        parts = (np.split(np.array(row[name]), ends) for name in ("input_ids", "labels"))
        library_examples |= {(tuple(ids), tuple(labels)) for ids, labels in zip(*parts, strict=True)}
    for level in LEVELS:
        ours = level_module(level, "data_pipeline.tokenizer.tokenizer").load_tokenizer(folder)
        train, _ = open_conversations(settings, ours, 2048)
        examples = [(each.ids, np.where(each.trained, each.ids, -100)) for each in train.examples]
        assert {(tuple(ids), tuple(labels)) for ids, labels in examples} == library_examples
        assert 'go{"place": "home", "far": true}!<|im_end|>' in ours.decode(train.examples[0].ids.tolist())
        assert '{"type": "function", "function": {"name": "stop"}}\n' in ours.decode(
            train.examples[1].ids.tolist()
        )


def level(name: str, dtype: str) -> Level:
    """A level with the library's model."""
    made = Level(name)
    made.model = level_module(name, "models.transformer").new_model(CONFIG)
    made.model.to(getattr(torch if name == "v2" else np, dtype))
    return made


def packed(tokenizers: Tokenizers, name: str) -> PackedConversations:
    """The four conversations in one row."""
    return PackedConversations(
        [encode_conversation(tokenizers[name], messages, LENGTH) for messages in chats(4)], 1, 1700, 1, 0
    )


def test_ids_and_labels_are_those_that_trl_prepares(
    tokenizers: Tokenizers, trainer: Any, parity: ParityRecorder
) -> None:
    for row, messages in zip(trainer.train_dataset, chats(4), strict=True):
        for name in LEVELS:
            example = encode_conversation(tokenizers[name], messages, LENGTH)
            size = len(example.ids)
            assert size == min(LENGTH, len(row["input_ids"]))
            labels = np.array(row["labels"][:size]) != -100
            for quantity, actual, expected in (
                ("ids", example.ids, row["input_ids"][:size]),
                ("mask", example.trained.astype(int), labels.astype(int)),
            ):
                parity(
                    component="sft", quantity=quantity, levels=f"{name}-v1",
                    actual=actual, expected=np.array(expected), tolerance=0,
                )  # fmt: skip


def test_loss_and_gradients_of_a_packed_row_are_trls_of_a_padded_batch(
    tokenizers: Tokenizers, trainer: Any, parity: ParityRecorder
) -> None:
    library = trainer.model
    library.load_state_dict(level("v2", "float32").model.state_dict())
    library.train()
    library.zero_grad()
    expected = trainer.compute_loss(library, trainer.data_collator(list(trainer.train_dataset)))
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in library.named_parameters()}
    library.zero_grad()
    losses, found = {}, {}
    for name in LEVELS:
        made = level(name, "float64")
        losses[name] = made.loss(packed(tokenizers, name).next_batch())
        losses[name].backward()
        found[name] = {key: np.asarray(p.grad) for key, p in made.model.named_parameters()}
    parity(
        component="sft",
        quantity="loss",
        levels="v2-v1",
        actual=losses["v2"],
        expected=expected,
        tolerance=5e-7,
    )
    parity(
        component="sft",
        quantity="loss",
        levels="v3-v2",
        actual=losses["v3"],
        expected=losses["v2"],
        tolerance=1e-15,
    )
    for key, gradient in found["v2"].items():
        row = {"component": "sft", "quantity": "every gradient"}
        parity(levels="v2-v1", actual=gradient, expected=gradients[key], tolerance=2e-7, **row)
        parity(levels="v3-v2", actual=found["v3"][key], expected=gradient, tolerance=5e-16, **row)


def test_ten_optimizer_steps_in_lockstep_with_trl(
    tokenizers: Tokenizers, trainer: Any, tmp_path: Path, parity: ParityRecorder
) -> None:
    trainer.model.load_state_dict(level("v2", "float32").model.state_dict())
    trainer.train()
    expected = np.array([row["loss"] for row in trainer.state.log_history if "loss" in row])
    options = [
        "max_steps=10",
        "learning_rate=1e-2",
        'lr_scheduler_type="constant"',
        "adam_beta2=0.95",
        "logging_steps=1",
    ]
    for name in LEVELS:
        made, loaded = level(name, "float32"), load_settings("smoke", [f"sft.{option}" for option in options])
        run = RunFolder(name, loaded, tmp_path / name)
        losses: list[float] = []

        def step(batch: Any, made: Level = made, losses: list[float] = losses) -> Any:
            loss = made.loss(batch)
            losses.append(loss.item())
            return loss, {}

        made.engine.Training("sft", loaded, run).fit(made.model, packed(tokenizers, name), step)
        parity(
            component="sft, lockstep", quantity="loss of each of 10 steps", levels=f"{name}-v1",
            actual=np.array(losses), expected=expected, tolerance=5e-6,
        )  # fmt: skip
    assert expected[-1] < expected[0] - 1, "it must have learnt"


def test_rows_are_filled_as_those_of_trl(parity: ParityRecorder) -> None:
    import datasets
    from trl import pack_dataset

    lengths = np.random.default_rng(0).integers(1, 50, 300)
    dataset = datasets.Dataset.from_dict({"input_ids": [[0] * int(n) for n in lengths]})
    library, rows = pack_dataset(dataset, 50, "bfd"), best_fit_rows(lengths, 50)
    assert sorted(place for row in rows for place in row) == list(range(len(lengths)))
    parity(
        component="packing of conversations", quantity="tokens in each row", levels="v2-v1",
        actual=np.sort([lengths[row].sum() for row in rows]),
        expected=np.sort([len(ids) for ids in library["input_ids"]]), tolerance=0,
    )  # fmt: skip
