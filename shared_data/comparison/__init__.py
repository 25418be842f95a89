"""Comparisons: the same training with other choices of its settings, one table and one plot (the command `compare`)."""
