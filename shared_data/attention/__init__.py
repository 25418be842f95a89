"""Which pairs of tokens attention looks at: index arithmetic that both hand-written levels plan their tiles with."""
