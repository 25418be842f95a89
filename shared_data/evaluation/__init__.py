"""Evaluation around a model's probabilities: windows over held-out text, exact-match answers."""
