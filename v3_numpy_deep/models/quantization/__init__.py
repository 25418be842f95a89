"""Weights in 8 and 4 bits for inference, and the algorithms that choose the codes."""
