"""Benchmarks: log-likelihoods of choices, and the stage around them."""
