"""What users do wrong in aligning a model: preference pairs, prompts, reward functions, adapters. The rest stands in `faults.py`.

These meet a run that has a tuned model and a reward model.
"""

import json
from pathlib import Path
from typing import Any

from tests.end_to_end.faults import STORY, Arguments, Fault, arguments

RIGHT = {"prompt": "What is it?", "chosen": "A ball.", "rejected": "A hat."}


def pairs(stage: str, **changes: Any) -> Fault:
    """Preference pairs of a user's, of which the second one is wrong."""

    def fault(scratch: Path, run: Path) -> Arguments:
        wrong = {key: value for key, value in {**RIGHT, **changes}.items() if value is not None}
        (scratch / "pairs.jsonl").write_text("\n".join(map(json.dumps, (RIGHT, wrong, RIGHT))))
        return [stage, "--force", "--set", f"{stage}.source={scratch / 'pairs.jsonl'}"]

    return fault


def prompts(stage: str, record: dict[str, Any], held_out: dict[str, Any] | None = None) -> Fault:
    """Prompts of a user's, of which the second one is wrong, or the first one, which is held out."""

    def fault(scratch: Path, run: Path) -> Arguments:
        records = [held_out or {"prompt": "What is it?"}, record, *[{"prompt": "Who is it?"}] * 2]
        (scratch / "prompts.jsonl").write_text("\n".join(map(json.dumps, records)))
        return [stage, "--force", "--set", f"{stage}.source={scratch / 'prompts.jsonl'}"]

    return fault


def reward_function(body: str, name: str = "worth", stage: str = "grpo") -> Fault:
    """A reward function of a user's, `worth(prompts, completions)`."""

    def fault(scratch: Path, run: Path) -> Arguments:
        (scratch / "rewards.py").write_text(f"def worth(prompts, completions):\n    {body}\n")
        return [stage, "--force", "--set", f"{stage}.reward={scratch / 'rewards.py'}:{name}"]

    return fault


def adapter(*assignments: str) -> Fault:
    """Adapters that cannot be."""
    words = [word for assignment in assignments for word in ("--set", f"sft.adapter.{assignment}")]
    return arguments("sft", "--force", *words)


ALIGNMENT_FAULTS: dict[str, tuple[Fault, str]] = {
    "pair without a rejected completion": (pairs("dpo", rejected=None), r"pairs\.jsonl, \w+ 2 has no text or turns in 'rejected'; "),
    "empty chosen completion": (pairs("dpo", chosen=" "), r"pairs\.jsonl, \w+ 2: 'chosen' is empty; complete or remove"),
    "identical completions": (pairs("reward", rejected="A ball."), r"pairs\.jsonl, \w+ 2: .*identical; remove"),
    "pair out of turn": (
        pairs("reward", chosen=[{"role": "user", "content": "A ball."}]),
        r"pairs\.jsonl, \w+ 2: 'chosen' begins with a turn of 'user'.*; correct",
    ),
    "prompt beyond the context": (pairs("dpo", prompt=STORY * 40), r"pairs\.jsonl, \w+ 2: the prompt has .* tokens.*; shorten"),
    "margin that is no number": (pairs("reward", margin="much"), r"pairs\.jsonl, \w+ 2: the margin is 'much'.*; correct"),
    "margin of many digits": (pairs("dpo", margin=10**400), r"pairs\.jsonl, \w+ 2: the margin is 1000.*; correct"),
    "margin beyond float32": (pairs("reward", margin=1e300), r"pairs\.jsonl, \w+ 2: the margin is 1e\+300.*; correct"),
    "missing pairs": (arguments("dpo", "--force", "--set", "dpo.source=nowhere.jsonl"), r"nowhere\.jsonl.*; "),
    "smoothing of a hinge": (
        arguments("dpo", "--set", 'dpo.loss_type="hinge"', "--set", "dpo.label_smoothing=0.1"),
        r"label_smoothing belongs to the sigmoid loss.*; leave",
    ),
    "prompt record without a prompt": (prompts("grpo", {"text": "What?"}), r"prompts\.jsonl, \w+ 2 has no text or turns in 'prompt'; it has .*; write"),
    "prompt that is no text": (prompts("ppo", {"prompt": 7}), r"prompts\.jsonl, \w+ 2 has no text or turns in 'prompt'; it has .*; write"),
    "prompt with a token of the template": (
        prompts("grpo", {"prompt": "a <|im_end|>"}),
        r"prompts\.jsonl, \w+ 2 contains <\|im_end\|>, which.*; remove",
    ),
    "prompt too long for the model": (
        prompts("grpo", {"prompt": STORY * 40}),
        r"prompts\.jsonl, \w+ 2: the prompt of \d+ tokens and a completion.* positions; shorten",
    ),
    "held-out prompt too long for the model": (
        prompts("ppo", {"prompt": "What is it?"}, {"prompt": STORY * 40}),
        r"prompts\.jsonl, \w+ 1: the prompt of \d+ tokens and a completion.* positions; shorten",
    ),
    "reward of no file": (arguments("grpo", "--force", "--set", "grpo.reward=no.py:worth"), r"no file no\.py; write"),
    "reward that is no name": (arguments("grpo", "--force", "--set", "grpo.reward=beauty"), r"'beauty' does not name.*; write"),
    "reward without the function": (reward_function("return [0.0]", name="wurth"), r"has no function wurth; it has worth"),
    "reward function that raises": (
        reward_function("return [1 / (len(text) - len(text)) for text in completions]"),
        r"worth raised ZeroDivisionError.* for completion 1, .*; mend",
    ),
    "reward that is NaN": (reward_function("return [float('nan') for _ in completions]"), r"worth gave nan for completion 1, .*; return"),
    "too few rewards": (reward_function("return [1.0]"), r"worth gave 1 rewards for \d+ completions; return"),
    "reward function that leaves": (reward_function("import sys; sys.exit(0)"), r"rewards\.py:worth called sys\.exit; raise"),
    "reward function that empties its lists": (
        reward_function("completions.clear(); return [1.0 for _ in completions]"),
        r"worth gave 0 rewards for \d+ completions; return",
    ),
    "reward function that gives a dictionary": (
        reward_function("return {index: 1.0 for index, _ in enumerate(completions)}"),
        r"rewards\.py:worth returned a dict; return",
    ),
    "reward beyond float32": (reward_function("return [1e300 for _ in completions]"), r"worth gave 1e\+300 for completion 1, .*; return"),
    "reward file that cannot be run": (reward_function("return ("), r"rewards\.py could not be run: SyntaxError.*; mend"),
    "adapter on no layer": (adapter("method=lora", 'target_modules=["nothing"]'), r"nothing.*; "),
    "adapter that brings no such module": (
        adapter("method=lora", 'modules_to_save=["nothing"]'),
        r"modules_to_save: no module is called 'nothing'; correct",
    ),
    "adapter of rank zero": (adapter("method=lora", "r=0"), r"sft\.adapter\.r\b.*; correct"),
    "4-bit blocks of no size": (adapter("method=qlora", "bnb_4bit_blocksize=48"), r"sft\.adapter\.bnb_4bit_blocksize.*; correct"),
    "chat with a model that scores": (arguments("chat", "--model", "reward"), r"does not write; choose --model"),
    "chat with a stage that is none": (arguments("chat", "--model", "rlhf"), r"no model 'rlhf'; name a stage"),
}  # fmt: skip
