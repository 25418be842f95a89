"""Scores of replies and the exam of a policy: equal at levels 2 and 3, whatever the padding; the record is named."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from v2_handwritten.align.algorithms.log_probabilities import frozen_copy

from shared_data.errors import UserError
from tests.parity.inference_cases import prompts, small_run, trio
from tests.parity.recorder import ParityRecorder
from v2_handwritten.align import scoring as scoring2
from v2_handwritten.data_pipeline.tokenizer.tokenizer import Tokenizer as Tokenizer2
from v2_handwritten.models.checkpoint import load_model as load2
from v2_handwritten.models.reward_model import RewardModel as RewardModel2
from v3_numpy_deep.align import scoring as scoring3
from v3_numpy_deep.data_pipeline.tokenizer.tokenizer import Tokenizer as Tokenizer3
from v3_numpy_deep.models.checkpoint import load_model as load3
from v3_numpy_deep.models.reward_model import RewardModel as RewardModel3

ASKED = ["Who has the red ball?", "Write a story.", "Where is Tom?"]


def length(prompts: list[str], replies: list[str]) -> list[float]:
    """A reward of texts."""
    return [len(reply) / 10 for reply in replies]


@pytest.fixture(scope="module")
def level(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """Model and tokenizer of a small run, as levels 2 and 3 load them; and the same model with other weights."""
    run = small_run(tmp_path_factory.mktemp("scoring"), "model.max_position_embeddings=128")
    folder: Path = run.model("pretrain")
    two, three = load2(folder).double(), load3(folder).to(np.float64)
    other = frozen_copy(two)
    for parameter in other.parameters():
        parameter += 0.1 * parameter.sign()
    other3 = load3(folder).to(np.float64)
    other3.load_state_dict({name: value.numpy() for name, value in other.state_dict().items()})
    return {
        2: (two, other, Tokenizer2.load(run.tokenizer)),
        3: (three, other3, Tokenizer3.load(run.tokenizer)),
    }


def test_the_exam_of_levels_2_and_3_is_the_same(parity: ParityRecorder, level: dict[int, Any]) -> None:
    (metrics2, records2), (metrics3, records3) = (
        module.examine_policy(*level[number], ASKED, length, max_new_tokens=10, batch_size=2)
        for number, module in ((2, scoring2), (3, scoring3))
    )
    assert records2 == records3
    assert [record["prompt"] for record in records2] == ASKED
    assert metrics2.keys() == metrics3.keys() == {"reward", "finished", "kl"}
    parity(
        component="exam of a policy",
        quantity="reward, finished, kl",
        levels="v2-v3",
        actual=[*metrics2.values()],
        expected=[*metrics3.values()],
        tolerance=4e-15,
    )


def test_a_policy_does_not_diverge_from_itself(level: dict[int, Any]) -> None:
    model, _, tokenizer = level[2]
    metrics, _ = scoring2.examine_policy(model, frozen_copy(model), tokenizer, ASKED, length, 6)
    assert metrics["kl"] == 0


def test_a_reward_model_scores_a_reply_in_a_batch_as_alone(parity: ParityRecorder) -> None:
    """Read at padding instead of the last real token, every score but the longest row's would change."""
    _, two, three = trio("llama GQA")
    models = (RewardModel2.from_transformer(two, 0), RewardModel3.from_transformer(three, 0))
    given, replies = prompts("llama GQA"), [[7, 8, 9, 3], [11, 3], [12] * 9, [3], [21, 22], [23, 24, 3]]
    together2, together3 = (
        module.model_score(model, given, replies_per_prompt=2)(replies)
        for module, model in zip((scoring2, scoring3), models, strict=True)
    )
    alone = [
        scoring2.model_score(models[0], [given[row // 2]])([reply])[0] for row, reply in enumerate(replies)
    ]
    for quantity, levels, expected in (("scores", "v2-v3", together3), ("scores alone", "v2-v2", alone)):
        parity(
            component="reward model of a rollout",
            quantity=quantity,
            levels=levels,
            actual=together2,
            expected=expected,
            tolerance=8e-15,
        )


def test_texts_are_scored_without_the_token_that_ends_them_and_beside_their_prompt(
    level: dict[int, Any],
) -> None:
    for number, module in ((2, scoring2), (3, scoring3)):
        tokenizer = level[number][2]
        heard: list[tuple[str, str]] = []

        def reward(prompts: list[str], replies: list[str], heard: list = heard) -> list[float]:
            heard += zip(prompts, replies, strict=True)
            return [math.nan if reply == "no" else 1.0 for reply in replies]

        end = tokenizer.special_tokens["<|im_end|>"]
        yes, no = tokenizer.encode("yes"), tokenizer.encode("no")
        score = module.text_score(tokenizer, ["A?", "B?"], reward, replies_per_prompt=2)
        assert score([[*yes, end], yes, [*yes, end], yes]) == [1.0] * 4
        assert heard == [("A?", "yes"), ("A?", "yes"), ("B?", "yes"), ("B?", "yes")]
        with pytest.raises(UserError, match="gave nan for reply 3, 'no' to the prompt 'B\\?'"):
            score([yes, yes, [*no, end], yes])
