"""Quantized weights: their formats, and the command that makes them; nothing here computes a model."""
