"""The stage `sft`: TRL's `SFTTrainer` on conversations, loss on the assistant's tokens only, packed rows.

Levels 2 and 3 write the trainer by hand; they also continue a run that was killed, which this one starts over.

    uv run v1 sft --config tiny
"""

import logging
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

from shared_data.files import write_json
from shared_data.metrics_log import MetricsLog
from shared_data.progress import progress
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from v1_quick.data_pipeline.download.records import open_records
from v1_quick.data_pipeline.processing.formatting import Message, format_chat
from v1_quick.data_pipeline.tokenizer.tokenizer import Tokenizer
from v1_quick.device import resolve_device
from v1_quick.evaluation.metrics.answers import answer_questions
from v1_quick.finetune.chat_data import _library_tokenizer, encode_conversation
from v1_quick.models.checkpoint import load_model, save_model
from v1_quick.models.transformer import Transformer
from v1_quick.pretrain.components.schedulers import _scheduler_arguments


def sft(settings: Settings, run: RunFolder) -> dict[str, float | int | None]:
    """Tune the pretrained model of the run on conversations; returns the numbers of the stage.

    Raises `UserError` for a record that is no conversation or does not fit, a missing checkpoint.
    """
    import datasets
    import transformers
    from trl import SFTConfig, SFTTrainer

    for library in (
        "trl",
        "bitsandbytes",
    ):  # packing without FlashAttention is safe: the mask follows `position_ids`
        logging.getLogger(library).setLevel(logging.ERROR)
    section = settings.sft
    tokenizer = Tokenizer.load(run.tokenizer)
    model = load_model(run.checkpoint("pretrain"), device=resolve_device(settings.device))
    length = min(section.sequence_length, model.config.max_position_embeddings)
    records = []
    for where, messages in islice(_conversations(settings), section.conversations):
        encode_conversation(
            tokenizer, messages, length, where
        )  # names a record that is wrong; the trainer would not
        records.append({"messages": messages})
    log = MetricsLog(run.stage("sft") / "metrics_log.jsonl")
    log.truncate_after(0)
    schedule, arguments = _scheduler_arguments(
        section.schedule, section.learning_rate, section.min_learning_rate_ratio
    )
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, progress(section.steps, "sft") as bar:
        trainer = SFTTrainer(
            model=model.library,
            args=SFTConfig(
                output_dir=folder,
                max_steps=section.steps,
                per_device_train_batch_size=section.batch_size,
                gradient_accumulation_steps=section.gradient_accumulation_steps,
                max_length=length,
                packing=True,
                assistant_only_loss=True,
                learning_rate=section.learning_rate,
                lr_scheduler_type=schedule,
                lr_scheduler_kwargs=arguments,
                warmup_steps=section.warmup_steps,
                weight_decay=section.weight_decay,
                adam_beta1=section.adam_beta1,
                adam_beta2=section.adam_beta2,
                adam_epsilon=section.adam_epsilon,
                max_grad_norm=section.max_grad_norm,
                bf16=section.precision == "bfloat16",
                activation_checkpointing=section.activation_checkpointing,
                use_cpu=next(model.parameters()).device.type == "cpu",
                seed=section.seed,
                logging_steps=min(section.log_every, section.steps),
                save_strategy="no",
                report_to="none",
                log_level="error",  # it would speak of token ids that are meant
                disable_tqdm=True,
            ),
            train_dataset=datasets.Dataset.from_list(records),
            processing_class=_library_tokenizer(tokenizer),
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.add_callback(_logger(log, bar))
        trainer.train()
    seconds = time.perf_counter() - started
    model.library.config.use_cache = True
    ends = [tokenizer.special_tokens["<|im_end|>"], tokenizer.end_of_text_id]
    model.library.config.eos_token_id = ends  # a chat model ends its turn, not the document
    save_model(model, run.stage("sft"), run.tokenizer.parent)
    tokens = int(trainer.state.num_input_tokens_seen) or section.steps * section.batch_size * length
    return {
        "steps": section.steps,
        "tokens": tokens,
        "conversations": len(records),
        "tokens_per_second": tokens / seconds,
        "loss": log.rows()[-1]["loss"],
        **_exam(settings, run, model, tokenizer),
    }


def _conversations(settings: Settings) -> Iterator[tuple[str, list[Message]]]:
    """Each conversation with the words that name it in an error."""
    section = settings.sft
    if section.source != "story_world":
        data = settings.data.model_copy(
            update={"source": section.source, "hub_config": None, "hub_split": "train"}
        )
        for where, record in open_records(data):
            yield where, format_chat(record, where)
        return
    from shared_data.story_world.conversations import conversations

    told = conversations(section.seed, "train", section.questions_per_story, section.request_fraction)
    for number, messages in enumerate(told):
        yield f"conversation {number:,} of the story world", messages


def _exam(settings: Settings, run: RunFolder, model: Transformer, tokenizer: Tokenizer) -> dict[str, float]:
    """Share of held-out questions that get exactly the right reply, before and after; the replies are kept in answers.json."""
    if settings.data.source != "story_world":
        return {}
    from shared_data.story_world.tasks import questions

    tasks = list(islice(questions(settings.sft.seed, "test"), settings.sft.test_questions))
    before = load_model(run.checkpoint("pretrain"))
    first = answer_questions(before, tokenizer, tasks)
    last = answer_questions(model, tokenizer, tasks)
    write_json(run.stage("sft") / "answers.json", {"before": first.records, "after": last.records})
    return {
        "qa_accuracy_before": first.accuracy,
        "qa_accuracy": last.accuracy,
        "unanswerable_accuracy": last.by_kind.get("unanswerable", 0.0),
    }


def _logger(log: MetricsLog, bar: Any) -> Any:
    """A callback that writes the trainer's numbers to our log."""
    from transformers import TrainerCallback

    class Logger(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            bar.update(1)

        def on_log(self, _args: Any, state: Any, _control: Any, logs: Any = None, **__: Any) -> None:
            if logs and "loss" in logs:
                log.append(
                    step=state.global_step,
                    loss=logs["loss"],
                    gradient_norm=float(logs.get("grad_norm", 0.0)),
                    learning_rate=logs["learning_rate"],
                )

    return Logger()
