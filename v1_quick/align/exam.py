"""The exam before and after alignment: the same held-out prompts, the same dice, the tuned model and the aligned one.

What it asks: are the replies worth more, how far has the policy moved from the tuned model (KL, in nats a reply), and does it
still know the language (bits per byte on held-out text)? The three belong together: a reward alone is easily bought.

The same at all levels.

    numbers = take_exam(settings, run, "dpo", model, tokenizer, prompts, reward)
"""

from collections.abc import Sequence
from itertools import islice
from typing import Any

from shared_data.reward_functions import RewardFunction

from shared_data.files import write_json
from shared_data.runs import RunFolder
from shared_data.settings import ExamSettings, Settings
from shared_data.story_world.questions import split_prompt
from shared_data.story_world.rewards import is_right
from v1_quick.align.scoring import examine_policy
from v1_quick.data_pipeline.prepare import read_documents
from v1_quick.data_pipeline.tokenizer.tokenizer import Tokenizer
from v1_quick.evaluation.metrics.perplexity import bits_per_byte, score_tokens
from v1_quick.models.checkpoint import load_model
from v1_quick.models.transformer import Transformer

DOCUMENTS = 100  # of the validation split, on which bits per byte are compared


def take_exam(
    settings: Settings,
    run: RunFolder,
    stage: str,
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    reward: RewardFunction,
) -> dict[str, float]:
    """The numbers of the exam, before and after; all replies are kept in replies.json.

    `before` and `after` are the mean reward; `question_…` and `request_…` the same for the story world's two sorts of prompts;
    `right_…` the share of its questions that are answered right, in however many words.
    """
    section: ExamSettings = getattr(settings, stage)
    tuned = load_model(run.model("sft")).to(next(model.parameters()).device)
    asked: dict[str, Any] = {
        "prompts": prompts,
        "reward": reward,
        "max_new_tokens": section.max_new_tokens,
        "temperature": section.temperature,
    }
    before, first = examine_policy(tuned, None, tokenizer, **asked)
    after, last = examine_policy(model, tuned, tokenizer, **asked)
    replies = [
        {
            "prompt": old["prompt"],
            "before": old["reply"],
            "before_reward": old["reward"],
            "after": new["reply"],
            "after_reward": new["reward"],
        }
        for old, new in zip(first, last, strict=True)
    ]
    write_json(run.stage(stage) / "replies.json", replies)
    numbers = {
        "before": before["reward"],
        "after": after["reward"],
        "kl": after["kl"],
        "finished_before": before["finished"],
        "finished": after["finished"],
    }
    questions = [record for record in replies if split_prompt(record["prompt"])]
    requests = [record for record in replies if not split_prompt(record["prompt"])]
    if questions and requests:
        for name, records in (("question", questions), ("request", requests)):
            for moment in ("before", "after"):
                numbers[f"{name}_{moment}"] = sum(r[f"{moment}_reward"] for r in records) / len(records)
    for moment in ("before", "after"):
        judged = [is_right(record["prompt"], record[moment]) for record in questions]
        if judged and None not in judged:
            numbers[f"right_{moment}"] = sum(map(bool, judged)) / len(judged)
    numbers["bits_per_byte_before"] = held_out_bits_per_byte(run, tuned, tokenizer)
    numbers["bits_per_byte"] = held_out_bits_per_byte(run, model, tokenizer)
    return numbers


def held_out_bits_per_byte(run: RunFolder, model: Transformer, tokenizer: Tokenizer) -> float:
    """Bits per byte on the first documents of the validation split: whether a tuned model still knows the language."""
    documents = islice(read_documents(run.documents("validation")), DOCUMENTS)
    texts = [document.text for document in documents]
    score = score_tokens(
        model,
        tokenizer.encode_to_array(texts, end_of_text=True),
        context_length=model.config.max_position_embeddings,
        stride=max(1, model.config.max_position_embeddings // 2),
        batch_size=2,
        end_of_text_id=tokenizer.end_of_text_id,
    )
    return bits_per_byte(score, sum(len(text.encode()) for text in texts))
