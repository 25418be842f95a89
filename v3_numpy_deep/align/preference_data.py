"""Preference records as training examples: ids of prompt and replies, and batches of both in an order that can be resumed.

The prompt is written by the chat template up to `<|im_start|>assistant`, as generation will see it; a reply ends with its
`<|im_end|>`, as generation will leave it. trl lets the template's line break after `<|im_end|>` belong to the reply, so that its
reward model is trained at a token that no rollout ever ends with; here it does not. Bad records are refused by name.

Level 1: the chat template of transformers. Level 2: the same as here. Theory: v2_handwritten/align/algorithms/dpo.md.

    pair = encode_pair(tokenizer, format_preference({"prompt": "Hi", "chosen": "Hello.", "rejected": "No."}), "record 0")
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from shared_data.errors import UserError
from shared_data.preference_pairs import Pair, check_pairs
from v3_numpy_deep.align.algorithms.dpo import PreferenceBatch, preference_batch
from v3_numpy_deep.autograd import Module
from v3_numpy_deep.autograd.parallel import available_threads, shards
from v3_numpy_deep.data_pipeline.tokenizer.chat_template import render_chat
from v3_numpy_deep.data_pipeline.tokenizer.tokenizer import Tokenizer
from v3_numpy_deep.finetune.chat_data import check_turns


def encode_pair(
    tokenizer: Tokenizer, record: Mapping[str, Sequence[Mapping[str, Any]]], where: str = "the record"
) -> Pair:
    """(prompt ids, chosen ids, rejected ids) of a record whose three parts are messages, as `format_preference` makes them.

    Raises `UserError` for an empty part, turns out of order, or text with one of the template's own tokens.
    """
    for part in ("prompt", "chosen", "rejected"):
        contents = [message["content"] for message in record[part]]
        if not any(content.strip() for content in contents):
            raise UserError(f"{where}: {part!r} is empty; complete or remove the record")
        for token in tokenizer.special_tokens:
            if any(token in content for content in contents):
                raise UserError(
                    f"{where} contains {token}, which the template writes itself; remove it from the text"
                )
    prompt = render_chat(record["prompt"], add_generation_prompt=True)
    ids = [tokenizer.encode(prompt, add_special_tokens=False)]
    for part in ("chosen", "rejected"):
        check_turns([*record["prompt"], *record[part]], where)
        reply = render_chat(record[part]).removeprefix("<|im_start|>assistant\n").removesuffix("\n")
        ids.append(tokenizer.encode(reply, add_special_tokens=False))
    return ids[0], ids[1], ids[2]


class PreferenceLoader:
    """Endless batches of B pairs; in an epoch each pair comes once, in an order drawn from (seed, epoch).

    `indices` of the last batch says which pairs it holds, so that numbers computed once for each pair, such as the
    log-probabilities of a reference model, can be looked up.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        batch_size: int,
        pad_id: int,
        max_length: int,
        seed: int,
        shuffle: bool = True,
        names: Sequence[str] | None = None,
    ) -> None:
        check_pairs(pairs, max_length, names)
        self.pairs = list(pairs)
        self.batch_size = batch_size
        self.pad_id = pad_id
        self.max_length = max_length
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0
        self.position = 0  # pairs of this epoch that were given out
        self.indices = np.empty(0, np.int64)
        self._order = self._order_of_epoch()

    def next_batch(self) -> PreferenceBatch:
        """The next B pairs; a batch that reaches the end of an epoch is filled up from the next one."""
        chosen: list[int] = []
        while len(chosen) < self.batch_size:
            if self.position == len(self.pairs):
                self.epoch, self.position = self.epoch + 1, 0
                self._order = self._order_of_epoch()
            end = min(len(self.pairs), self.position + self.batch_size - len(chosen))
            chosen += self._order[self.position : end].tolist()
            self.position = end
        return self._batch(chosen)

    def one_pass(self, max_batches: int | None = None) -> Iterator[PreferenceBatch]:
        """Every pair once and in order, the last batch smaller; training's position stays."""
        starts = range(0, len(self.pairs), self.batch_size)
        for start in starts[:max_batches]:
            yield self._batch(list(range(start, min(len(self.pairs), start + self.batch_size))))

    def state_dict(self) -> dict[str, Any]:
        """All that decides which batches follow; plain numbers, for JSON."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "pairs": len(self.pairs),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken. Raises `UserError` for the state of other pairs or another seed."""
        own = self.state_dict()
        for key in ("seed", "shuffle", "pairs"):
            if state[key] != own[key]:
                raise UserError(
                    f"the checkpoint's data order has {key} {state[key]}, this run has {own[key]}; "
                    "start the stage over without resuming"
                )
        self.epoch, self.position = state["epoch"], state["position"]
        self._order = self._order_of_epoch()

    def _order_of_epoch(self) -> Int64[np.ndarray, " P"]:
        """Which pair comes when; a function of (seed, epoch) alone."""
        order = np.arange(len(self.pairs))
        if self.shuffle:
            np.random.default_rng([self.seed, self.epoch]).shuffle(order)
        return order

    def _batch(self, indices: list[int]) -> PreferenceBatch:
        self.indices = np.array(indices, dtype=np.int64)
        return preference_batch([self.pairs[i] for i in indices], self.pad_id, self.max_length)


def _pair_shards(B: int, model: Module) -> list[Int64[np.ndarray, " rows"]]:
    """The rows of a batch of B pairs in a part for each thread; the two rows of a pair stay together.

    With dropout there is one part, as its masks are drawn one by one.
    """
    config = model.config
    dropout = max(config.embd_pdrop, config.attention_dropout, config.resid_pdrop) > 0
    threads = 1 if model.training and dropout else available_threads()
    pairs = (np.arange(B)[part] for part in shards(B, threads))
    return [np.concatenate([part, B + part]) for part in pairs]
