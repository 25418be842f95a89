"""A model of transformers as the evaluation of alignment sees it (`shared_data/alignment/policy_evaluation.py`).

metrics = evaluate_policy(settings, run, "dpo", Policy(model, tokenizer), Policy(reference, tokenizer), prompts, reward)
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from shared_data.alignment.policy_evaluation import Completion
from shared_data.evaluation.windows import bits_per_byte, score_tokens
from shared_data.inference.prompts import encode_chat, stop_ids
from v1_quick.inference.generate import generate
from v1_quick.inference.scoring import negative_log_probs


class Policy:
    """A language model and its tokenizer."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
        self.model, self.tokenizer = model, tokenizer

    def complete(
        self, prompts: Sequence[str], max_completion_length: int, temperature: float, seed: int
    ) -> list[Completion]:
        """One sampled completion of each prompt."""
        ids = [encode_chat(self.tokenizer, [{"role": "user", "content": prompt}]) for prompt in prompts]
        stops = stop_ids(self.tokenizer)
        options = {"max_new_tokens": max_completion_length, "temperature": temperature, "seed": seed}
        completions = generate(self.model, ids, eos_token_id=stops, **options)
        texts = self.tokenizer.batch_decode(completions, skip_special_tokens=True)
        return [
            Completion(prompt, completion, text, finished=completion[-1] in stops)
            for prompt, completion, text in zip(ids, completions, texts, strict=True)
        ]

    @torch.inference_mode()
    def log_probs(self, completions: Sequence[Completion], temperature: float) -> list[float]:
        """log p(completion | prompt) of each, in nats."""
        sums = []
        for completion in completions:
            ids = torch.tensor([completion.prompt_ids + completion.ids], device=self.model.device)
            log_probs = torch.log_softmax(self.model(ids).logits[0].float() / temperature, dim=-1)
            first = len(completion.prompt_ids)
            sums.append(log_probs[first - 1 : -1].gather(-1, ids[0, first:, None]).sum().item())
        return sums

    def bits_per_byte(self, texts: Sequence[str]) -> float:
        """Of documents, each read by itself."""
        positions, end = self.model.config.max_position_embeddings, stop_ids(self.tokenizer)[-1]
        tokens = [
            id for ids in self.tokenizer(texts, split_special_tokens=True).input_ids for id in (*ids, end)
        ]
        score = score_tokens(
            negative_log_probs, self.model, tokens, positions, max(1, positions // 2), 2, end
        )
        return bits_per_byte(score, sum(len(text.encode()) for text in texts))
