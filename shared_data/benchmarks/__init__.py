"""Benchmarks: published data formats, prompts, few-shot examples, scores and results, as lm-evaluation-harness has them."""
