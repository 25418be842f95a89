"""Four choices of one question, error bars, and where a context ends, as in v2_handwritten/evaluation/benchmarks/harness.md."""

import math
from pathlib import Path

from shared_data.benchmarks.batches import plan_batches
from shared_data.benchmarks.items import Request
from shared_data.benchmarks.scores import aggregate, mean_stderr, multiple_choice_values
from shared_data.benchmarks.token_requests import TokenRequest, encode_request
from tests.worked import ROOT, agrees
from v2_handwritten.data_pipeline.tokenizer.bpe_train import train_bpe

PAGE = "v2_handwritten/evaluation/benchmarks/harness.md"
# What the model gives each token of each choice.
PROBABILITIES = {
    "milk": [0.20],
    "cold milk from a bowl": [0.30, 0.60, 0.80, 0.90, 0.70],
    "fish": [0.05],
    "牛奶": [0.6, 0.2],
}


def test_four_ways_to_compare_choices() -> None:
    sums = [sum(map(math.log, tokens)) for tokens in PROBABILITIES.values()]
    rows = [
        [total, total / len(tokens), total / len(choice), total / len(choice.encode())]
        for total, (choice, tokens) in zip(sums, PROBABILITIES.items(), strict=True)
    ]
    agrees(PAGE, "choice", rows)
    choices = list(PROBABILITIES)
    assert multiple_choice_values(sums, choices, choices.index("milk"))["acc"] == 1
    assert multiple_choice_values(sums, choices, choices.index("cold milk from a bowl"))["acc_norm"] == 1


def test_of_equal_choices_the_first_counts() -> None:
    assert [multiple_choice_values([-2.0, -2.0], ["ab", "cd"], gold)["acc"] for gold in (0, 1)] == [1, 0]


def test_a_length_is_counted_in_characters() -> None:
    """水水水 has the higher ln p per byte, abcd per character."""
    assert multiple_choice_values([-2.0, -2.2], ["水水水", "abcd"], gold=1) == {"acc": 0, "acc_norm": 1}


def test_error_bars() -> None:
    assert aggregate("acc", [1.0, 0.0, 1.0, 1.0]) == {"acc": 0.75, "acc_stderr": 0.25}
    rows = []
    for items in (100, 400, 1600, 10000):
        right = round(0.7 * items)
        error = mean_stderr([1.0] * right + [0.0] * (items - right))
        assert error is not None
        rows.append([100 * error, 196 * error])
    agrees(PAGE, "items", rows)


def test_together_or_apart() -> None:
    tokenizer = train_bpe(
        ["Answer: milk. Answer: fish. Answer: milk"] * 3, 280, special_tokens=["<|endoftext|>"]
    )

    def shown(context: list[int], continuation: list[int]) -> str:
        parts = [" ".join(repr(tokenizer.decode([id])) for id in ids) for ids in (context, continuation)]
        return " | ".join(parts)

    for request in (Request("Answer:", " milk"), Request("Answer: ", "milk")):
        together = shown(*encode_request(tokenizer, request))
        assert f"together    {together}\n" in page()
    apart = shown(tokenizer.encode("Answer: "), tokenizer.encode("milk"))
    assert f"apart       {apart}\n" in page()


def test_truncation_keeps_the_end() -> None:
    (batch,) = plan_batches([TokenRequest([1, 2, 3, 4, 5, 6], [7, 8, 9])], batch_size=4, max_length=5)
    assert batch.input_ids.tolist() == [[4, 5, 6, 7, 8]]
    assert batch.logits_to_keep.tolist() == [[False, False, True, True, True]]
    assert batch.targets.tolist() == [7, 8, 9]
    assert "inputs         4 5 6   7 8\npredicts             7 8 9\n" in page()


def page() -> str:
    return Path(ROOT / PAGE).read_text(encoding="utf-8")
