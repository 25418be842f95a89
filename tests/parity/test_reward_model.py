"""The reward model at all levels: scores, gradients, the last token under padding, folders that load both ways."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from shared_data.errors import UserError
from tests.parity.arrays import array, integers
from tests.parity.inference_cases import trio
from tests.parity.model_cases import gradients
from tests.parity.preference_cases import PAD, reward_trio
from tests.parity.recorder import ParityRecorder, as_array
from v2_handwritten.models import checkpoint as v2
from v2_handwritten.models.reward_model import RewardModel
from v3_numpy_deep.models import checkpoint as v3
from v3_numpy_deep.models.reward_model import RewardModel as ArrayRewardModel

CASES = ["gpt2", "llama GQA"]
B, T = 3, 9
IDS = integers(4, PAD, B, T)
# Right padding, left padding, none.
MASK = np.array([[1, 1, 1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1, 1, 1, 1], [1] * T])
IDS[MASK == 0] = PAD


def torch_inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(IDS), torch.from_numpy(MASK)


def library_scores(library: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A score for every prefix of every text; the library gets the positions under padding, too."""
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    body = library.base_model(ids, attention_mask=mask, position_ids=positions, use_cache=False)
    return library.score(body.last_hidden_state).squeeze(-1)


def relative(found: dict[str, Any], expected: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """All gradients in a row, each divided by the largest element of the expected one."""
    assert found.keys() == expected.keys()
    scales = {name: abs(np.asarray(expected[name])).max() for name in expected}
    rows = (found, expected)
    first, second = (np.concatenate([np.ravel(np.asarray(x[n])) / scales[n] for n in expected]) for x in rows)
    return first, second


@pytest.mark.parametrize("case", CASES)
def test_scores_at_some_positions_are_those_of_all(parity: ParityRecorder, case: str) -> None:
    """As PPO's value model is used: the states before the tokens of a completion, and 0 elsewhere."""
    _, model, arrays = reward_trio(case)
    keep = np.zeros((B, T), bool)
    keep[[0, 0, 1, 2, 2], [2, 4, 8, 0, 8]] = True
    for levels, some, every in (
        ("v2-v2", model.scores(*torch_inputs(), torch.from_numpy(keep)), model.scores(*torch_inputs())),
        ("v3-v3", arrays.scores(IDS, MASK, keep), arrays.scores(IDS, MASK)),
    ):
        parity(
            component=f"reward model, {case}", quantity="scores at some positions", levels=levels,
            actual=some, expected=np.where(keep, as_array(every), 0), tolerance=1e-15,
        )  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_scores_and_every_gradient_agree_at_all_levels(parity: ParityRecorder, case: str) -> None:
    library, model, arrays = reward_trio(case)
    direction = array(8, B)
    last = torch.from_numpy((MASK * np.arange(T)).argmax(-1))[:, None]
    results = []
    for reward_model, scores in (
        (library, library_scores(library, *torch_inputs())),
        (model, model.scores(*torch_inputs())),
    ):
        result = scores.gather(1, last)[:, 0] if reward_model is library else model(*torch_inputs())
        result.backward(torch.from_numpy(direction))
        results.append((result.detach(), scores.detach()[MASK == 1], gradients(reward_model)))
    result = arrays(IDS, MASK)
    result.backward(direction)
    found = {name: parameter.grad for name, parameter in arrays.named_parameters()}
    results.append((result, arrays.scores(IDS, MASK).data[MASK == 1], found))
    for levels, i, j, tolerance in (
        ("v2-v1", 1, 0, 5e-6 if case.startswith("llama") else 2e-14),
        ("v2-v3", 2, 1, 2e-14),
    ):
        for quantity, a, b in (
            ("score", results[i][0], results[j][0]),
            ("score of every prefix", results[i][1], results[j][1]),
            ("every gradient", *relative(results[i][2], results[j][2])),
        ):
            component = f"reward_model, {case}"
            parity(
                component=component,
                quantity=quantity,
                levels=levels,
                actual=a,
                expected=b,
                tolerance=tolerance,
            )


@pytest.mark.parametrize("case", CASES)
def test_right_padded_scores_equal_the_library_class_itself(parity: ParityRecorder, case: str) -> None:
    """`GPT2ForSequenceClassification` and `LlamaForSequenceClassification` find the last token by `pad_token_id`."""
    library, model, _ = reward_trio(case)
    ids, mask = (x[[0, 2]] for x in torch_inputs())
    with torch.no_grad():
        expected = library(ids, attention_mask=mask).logits.squeeze(-1)
        parity(
            component=f"reward_model, {case}",
            quantity="score, library class",
            levels="v2-v1",
            actual=model(ids, mask),
            expected=expected,
            tolerance=1e-6 if case.startswith("llama") else 5e-15,
        )


@pytest.mark.parametrize("case", CASES)
def test_the_score_is_that_of_the_last_real_token_under_either_padding(case: str) -> None:
    """The exercise of reward_model.md: padding left or right, whatever its id, leaves every score as it is alone."""
    _, model, arrays = reward_trio(case)
    for row in range(B):
        alone = IDS[row : row + 1][:, MASK[row] == 1]
        expected = model(torch.from_numpy(alone)).item()
        assert model.scores(torch.from_numpy(alone))[0, -1].item() == pytest.approx(expected, abs=1e-14)
        for pad_id in (PAD, int(alone[0, -1])):  # padding may look like the last token
            ids = IDS.copy()
            ids[MASK == 0] = pad_id
            found = model(torch.from_numpy(ids), torch.from_numpy(MASK))[row].item()
            assert found == pytest.approx(expected, abs=1e-13)
            assert arrays(ids, MASK).data[row] == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize("case", CASES)
def test_a_new_reward_model_leaves_the_language_model_alone(case: str) -> None:
    _, language, array_language = trio(case)
    model, arrays = (
        RewardModel.from_transformer(language, 0),
        ArrayRewardModel.from_transformer(array_language, 0),
    )
    assert np.array_equal(model.score.weight.detach(), arrays.score.weight.data)
    before = {name: tensor.clone() for name, tensor in language.state_dict().items()}
    before3 = {name: tensor.copy() for name, tensor in array_language.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    for parameter in arrays.parameters():
        parameter.data += 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in language.state_dict().items())
    assert all(np.array_equal(tensor, before3[name]) for name, tensor in array_language.state_dict().items())


@pytest.mark.parametrize("case", CASES)
def test_parameters_carry_the_library_names(case: str) -> None:
    library, model, arrays = reward_trio(case)
    expected = {name: tuple(tensor.shape) for name, tensor in library.state_dict().items()}
    for ours in (model, arrays):
        assert {name: tuple(tensor.shape) for name, tensor in ours.state_dict().items()} == expected


@pytest.mark.parametrize("case", CASES)
def test_every_level_and_transformers_load_what_each_saved(case: str, tmp_path: Path) -> None:
    library, *models = reward_trio(case)
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer_config.json").write_text('{"pad_token": "<|pad|>"}')
    (tokenizer / "tokenizer.json").write_text(
        json.dumps({"added_tokens": [{"id": PAD, "content": "<|pad|>"}]})
    )
    expected = models[0](*torch_inputs()).detach().numpy()
    library.save_pretrained(tmp_path / "library")
    for level, model in zip((v2, v3), models, strict=True):
        level.save_model(model, tmp_path / level.__name__, tokenizer)
    for folder in (tmp_path / "library", tmp_path / v2.__name__, tmp_path / v3.__name__):
        for level, inputs in ((v2, torch_inputs()), (v3, (IDS, MASK))):
            found = level.load_reward_model(folder).eval()(*inputs)
            np.testing.assert_allclose(as_array(found), expected, atol=3e-6)
        loaded = AutoModelForSequenceClassification.from_pretrained(folder)
        assert (loaded.config.num_labels, loaded.config.pad_token_id) == (1, PAD)
        ids, mask = (x[[0, 2]] for x in torch_inputs())
        scores = loaded.double()(ids, attention_mask=mask).logits[:, 0].detach()
        np.testing.assert_allclose(scores, expected[[0, 2]], atol=3e-6)


@pytest.mark.parametrize("level", [v2, v3])
def test_folders_that_are_no_reward_model_are_refused(level: Any, tmp_path: Path) -> None:
    _, language, _ = trio("gpt2")
    v2.save_model(language, tmp_path / "language")
    with pytest.raises(UserError, match=r"score.weight.*`reward`"):
        level.load_reward_model(tmp_path / "language")
    v2.save_model(RewardModel.from_transformer(language, 0), tmp_path / "reward")
    with pytest.raises(UserError, match=r"unexpected tensor score.weight"):
        level.load_model(tmp_path / "reward")
    tensors = load_file(tmp_path / "reward" / "model.safetensors")
    save_file({**tensors, "score.weight": torch.zeros(2, 32)}, tmp_path / "reward" / "model.safetensors")
    with pytest.raises(UserError, match=r"tensor score.weight has shape \[2, 32\].*asks for \[1, 32\]"):
        level.load_reward_model(tmp_path / "reward")
    config = tmp_path / "reward" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"id2label": {"0": "a", "1": "b"}}))
    with pytest.raises(UserError, match="classifies into 2 labels"):
        level.load_reward_model(tmp_path / "reward")
    with pytest.raises(UserError):
        level.load_reward_model(tmp_path / "nowhere")


def test_a_text_longer_than_the_model_is_refused() -> None:
    _, model, arrays = reward_trio("gpt2")
    ids = np.zeros((1, 129), np.int64)
    for call in (lambda: model(torch.from_numpy(ids)), lambda: arrays(ids)):
        with pytest.raises(UserError, match="129 tokens are more than the model's 128 positions"):
            call()
