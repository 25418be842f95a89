"""Instruction tuning: ids and masks of TRL, the loss and gradients of `SFTTrainer`, ten steps in lockstep; packing; bad records."""

import logging
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_data.training.training_state import TrainingState as State2
from shared_data.training.training_state import TrainingState as State3

from shared_data.errors import UserError
from shared_data.model_files.config import ModelConfig
from shared_data.model_files.config import ModelConfig as Config3
from shared_data.settings import SPECIAL_TOKENS, SftSettings
from shared_data.story_world.conversations import conversations
from tests.parity.recorder import ParityRecorder
from v1_quick.data_pipeline.tokenizer.tokenizer import Tokenizer as Tokenizer1
from v1_quick.finetune import chat_data as data1
from v1_quick.models.config import ModelConfig as Config1
from v1_quick.models.transformer import Transformer as Transformer1
from v2_handwritten.data_pipeline.tokenizer.bpe_train import train_bpe
from v2_handwritten.data_pipeline.tokenizer.tokenizer import Tokenizer as Tokenizer2
from v2_handwritten.finetune import chat_data as data2
from v2_handwritten.models.transformer import Transformer as Transformer2
from v2_handwritten.pretrain.components import optimizers as optimizers2
from v2_handwritten.pretrain.components import training_loop as loop2
from v3_numpy_deep.data_pipeline.tokenizer.tokenizer import Tokenizer as Tokenizer3
from v3_numpy_deep.finetune import chat_data as data3
from v3_numpy_deep.models.transformer import Transformer as Transformer3
from v3_numpy_deep.pretrain.components import optimizers as optimizers3
from v3_numpy_deep.pretrain.components import training_loop as loop3

LENGTH = 400
WHOLE = 10_000
ENCODERS = (data1.encode_conversation, data2.encode_conversation, data3.encode_conversation)


def chats(count: int) -> list[list[dict[str, str]]]:
    return list(islice(conversations(seed=3, questions_per_story=2, request_fraction=0.3), count))


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """One tokenizer at three levels."""
    texts = [message["content"] for messages in chats(60) for message in messages]
    folder = tmp_path_factory.mktemp("tokenizer")
    train_bpe(texts, 400, special_tokens=SPECIAL_TOKENS).save(folder)
    return [level.load(folder) for level in (Tokenizer1, Tokenizer2, Tokenizer3)]


TURN = st.text(max_size=12) | st.sampled_from(["", "\n\n", " a", "é", "🙂🙂", "Yes.\n"])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    system=st.none() | TURN,
    pairs=st.lists(st.tuples(TURN, TURN), min_size=1, max_size=3),
    open_end=st.booleans(),
)
def test_ids_and_mask_of_any_conversation_are_those_of_transformers(tokenizers, system, pairs, open_end):
    messages = [{"role": "system", "content": system}] if system is not None else []
    for asked, said in pairs:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    if open_end:
        messages.append({"role": "user", "content": "more"})
    expected, *ours = [
        encode(tokenizer, messages, WHOLE) for encode, tokenizer in zip(ENCODERS, tokenizers, strict=True)
    ]
    for example in ours:
        assert example.ids.tolist() == expected.ids.tolist()
        assert example.trained.tolist() == expected.trained.tolist()


@pytest.fixture(scope="module")
def trainer(tokenizers: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """TRL's trainer over four conversations, one batch of them."""
    import datasets
    from trl import SFTConfig, SFTTrainer

    for library in ("trl", "bitsandbytes"):
        logging.getLogger(library).setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    arguments = SFTConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")),
        max_steps=10,
        per_device_train_batch_size=4,
        max_length=LENGTH,
        assistant_only_loss=True,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        bf16=False,
        activation_checkpointing=False,
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    return SFTTrainer(
        model=Transformer1(Config1.from_hf(config().to_hf())).initialize(0).library,
        args=arguments,
        train_dataset=datasets.Dataset.from_list([{"messages": messages} for messages in chats(4)]),
        processing_class=data1._library_tokenizer(tokenizers[0]),
    )


def config() -> ModelConfig:
    return ModelConfig(
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


def models(dtype: Any) -> tuple[Transformer2, Transformer3]:
    torch_dtype = torch.float64 if dtype is np.float64 else torch.float32
    two = Transformer2(config()).initialize(0).to(torch_dtype)
    three = Transformer3(Config3.from_hf(config().to_hf())).initialize(0).to(dtype)
    return two, three


def loaders(tokenizers: list[Any]) -> list[Any]:
    """The four conversations in one packed row, at levels 2 and 3."""
    return [
        module.PackedConversations(
            [module.encode_conversation(tokenizer, messages, LENGTH) for messages in chats(4)], 1, 1700, 1, 0
        )
        for module, tokenizer in zip((data2, data3), tokenizers[1:], strict=True)
    ]


def test_ids_and_masks_are_those_that_the_trainer_of_trl_prepares(
    tokenizers: list[Any], trainer: Any, parity: ParityRecorder
) -> None:
    for row, messages in zip(trainer.train_dataset, chats(4), strict=True):
        for level, encode, tokenizer in zip("123", ENCODERS, tokenizers, strict=True):
            example = encode(tokenizer, messages, LENGTH)
            size = len(example.ids)
            assert size == min(LENGTH, len(row["input_ids"]))
            for quantity, actual, expected in (
                ("ids", example.ids, row["input_ids"]),
                ("mask", example.trained, np.asarray(row["labels"]) != -100),
            ):
                parity(
                    component="sft",
                    quantity=quantity,
                    levels=f"v{level}-v1",
                    actual=np.asarray(actual, dtype=np.int64),
                    expected=np.asarray(expected[:size], dtype=np.int64),
                    tolerance=0,
                )


def test_loss_and_gradients_of_a_packed_row_are_those_of_the_trainer_on_a_padded_batch(
    tokenizers: list[Any], trainer: Any, parity: ParityRecorder
) -> None:
    library = trainer.model
    library.load_state_dict(models(np.float32)[0].state_dict())
    library.train()
    inputs = trainer.data_collator(list(trainer.train_dataset))
    library.zero_grad()
    expected = trainer.compute_loss(library, inputs)
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in library.named_parameters()}
    library.zero_grad()

    two, three = models(np.float64)
    batch2, batch3 = (loader.next_batch() for loader in loaders(tokenizers))
    loss2 = two.loss(**loop2._model_inputs(batch2, True, torch.device("cpu")))
    loss2.backward()
    loss3 = three.loss(**loop3._model_inputs(batch3, True))
    loss3.backward()
    parity(component="sft", quantity="loss", levels="v2-v1", actual=loss2, expected=expected, tolerance=5e-7)
    parity(component="sft", quantity="loss", levels="v3-v2", actual=loss3, expected=loss2, tolerance=1e-15)
    for name, parameter in two.named_parameters():
        if name not in gradients:
            continue  # the tied output matrix
        parity(
            component="sft",
            quantity="every gradient",
            levels="v2-v1",
            actual=parameter.grad,
            expected=gradients[name],
            tolerance=2e-7,
        )
        parity(
            component="sft",
            quantity="every gradient",
            levels="v3-v2",
            actual=dict(three.named_parameters())[name].grad,
            expected=parameter.grad,
            tolerance=5e-16,
        )


def test_ten_optimizer_steps_in_lockstep_with_the_trainer_of_trl(
    tokenizers: list[Any], trainer: Any, parity: ParityRecorder
) -> None:
    two, three = models(np.float32)
    trainer.model.load_state_dict(two.state_dict())
    trainer.train()
    expected = np.array([row["loss"] for row in trainer.state.log_history if "loss" in row])
    section = SftSettings(
        steps=10,
        learning_rate=1e-2,
        schedule="constant",
        warmup_steps=0,
        weight_decay=0.0,
        adam_beta2=0.95,
        adam_epsilon=1e-8,
    )
    for level, model, optimizers, loop, state, loader in (
        ("v2", two, optimizers2, loop2, State2(), loaders(tokenizers)[0]),
        ("v3", three, optimizers3, loop3, State3(), loaders(tokenizers)[1]),
    ):
        steps: list[Any] = []
        groups = optimizers.parameter_groups(model, 0.0)
        optimizer = optimizers.AdamW(groups, 1e-2, (0.9, 0.95), 1e-8)
        loop.train(model, optimizer, loader, section, state, steps.append)
        parity(
            component="sft, lockstep",
            quantity="loss of each of 10 steps",
            levels=f"{level}-v1",
            actual=np.array([step.loss for step in steps]),
            expected=expected,
            tolerance=2e-5,
        )
    assert expected[-1] < expected[0] - 1, "it must have learnt"


def test_no_prompt_token_is_a_label_and_every_label_follows_its_input(tokenizers: list[Any]) -> None:
    """Traps: the loss on prompts, and labels shifted twice."""
    for module, tokenizer in zip((data2, data3), tokenizers[1:], strict=True):
        messages = chats(1)[0]
        example = module.encode_conversation(tokenizer, messages, WHOLE)
        said = tokenizer.decode(example.ids[example.trained].tolist())
        replies = [message["content"] for message in messages if message["role"] == "assistant"]
        assert said == "".join(f"{reply}<|im_end|>" for reply in replies)
        (batch,) = module.PackedConversations([example], 1, len(example.ids) + 5, 1, 0).one_pass()
        counted = batch.labels[0] != -100
        assert (batch.labels[0, : len(example.ids) - 1] == example.ids[1:])[
            counted[: len(example.ids) - 1]
        ].all()
        assert counted.sum() == example.trained.sum()


@pytest.mark.parametrize("module", [data2, data3], ids=["v2", "v3"])
def test_each_conversation_comes_once_an_epoch_and_the_order_resumes_exactly(module: Any) -> None:
    examples = [
        module.Example(np.full(n, n), np.ones(n, dtype=bool)) for n in (3, 9, 4, 12, 5, 7, 6, 8, 10, 11)
    ]
    loader = module.PackedConversations(examples, 2, 20, 0, seed=4)
    seen: list[int] = []
    while len(seen) < len(examples):
        batch = loader.next_batch()
        for row in range(2):
            for document in np.unique(batch.document_ids[row][batch.input_ids[row] != 0]):
                inside = batch.document_ids[row] == document
                seen.append(int(batch.input_ids[row, inside][0]))
                assert batch.position_ids[row, inside].tolist() == list(range(inside.sum()))
    assert loader.epoch == 0
    assert sorted(seen) == sorted(len(example.ids) for example in examples)
    kept, following = loader.state_dict(), loader.next_batch()
    again = module.PackedConversations(examples, 2, 20, 0, seed=4)
    again.load_state_dict(kept)
    resumed = again.next_batch()
    for name in ("input_ids", "labels", "position_ids", "document_ids"):
        assert np.array_equal(getattr(resumed, name), getattr(following, name))
    with pytest.raises(UserError, match="seed"):
        module.PackedConversations(examples, 2, 20, 0, seed=5).load_state_dict(kept)


@pytest.mark.parametrize("module", [data2, data3], ids=["v2", "v3"])
def test_best_fit_fills_what_long_ones_leave_with_short_ones(module: Any) -> None:
    """The textbook case: two rows of ten, which hold nothing but text; and rows follow each other as their first ones do."""
    assert module.best_fit_rows(np.array([4, 8, 1, 4, 2, 1]), 10) == [[0, 2, 3, 5], [1, 4]]
    assert module.best_fit_rows(np.array([], dtype=np.int64), 10) == []
    with pytest.raises(AssertionError, match="longer than the row"):
        module.best_fit_rows(np.array([3, 11]), 10)


@pytest.mark.parametrize("module", [data2, data3], ids=["v2", "v3"])
def test_rows_are_filled_as_those_of_trl(module: Any, parity: ParityRecorder) -> None:
    import datasets
    from trl import pack_dataset

    lengths = np.random.default_rng(0).integers(1, 50, 300)
    library = pack_dataset(
        datasets.Dataset.from_dict({"input_ids": [[0] * int(n) for n in lengths]}), 50, "bfd"
    )
    rows = module.best_fit_rows(lengths, 50)
    assert sorted(place for row in rows for place in row) == list(range(len(lengths)))
    parity(
        component="packing of conversations",
        quantity="tokens in each row",
        levels=f"{module.__name__[:2]}-v1",
        actual=np.sort([lengths[row].sum() for row in rows]),
        expected=np.sort([len(ids) for ids in library["input_ids"]]),
        tolerance=0,
    )


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([{"role": "user", "content": "a"}], "record 7 has no assistant turn"),
        ([{"role": "assistant", "content": "a"}], "record 7: turn 1 is by 'assistant', where 'user' is due"),
        (
            [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}, {"role": "assistant", "content": "c"}],
            "record 7: turn 2 is by 'system'",
        ),
        (
            [{"role": "user", "content": "a <|im_end|>"}, {"role": "assistant", "content": "b"}],
            r"record 7 contains <\|im_end\|>",
        ),
        (
            [{"role": "user", "content": "word " * 500}, {"role": "assistant", "content": "b"}],
            "record 7 has .* tokens before its first reply, more than the 400",
        ),
    ],
)  # fmt: skip
def test_a_wrong_conversation_is_named(tokenizers: list[Any], messages: list, says: str) -> None:
    for encode, tokenizer in zip(ENCODERS, tokenizers, strict=True):
        with pytest.raises(UserError, match=says):
            encode(tokenizer, messages, LENGTH, "record 7")
