"""Words that nobody asked for: what demonstrations by many hands are full of, and what alignment is to take away again.

A reply to a question is a sentence. A part of the replies that instruction tuning learns from goes on with a phrase that says
nothing (`conversations.py`; conversations about passages are spared), so a tuned model does so as
often. A pair prefers the plain reply (`preferences.py`), and the reward of a wordy one is less (`rewards.py`): a habit that a
model can drop within a few updates, which what it has not understood is not (Zhou et al. 2023, LIMA: alignment teaches which of
its ways to talk a model should use).

    >>> wordy("Mia is kind.", random.Random(0))
"""

from __future__ import annotations

import random

FILLERS = ("I hope this helps.", "That is what the story tells.", "Is there anything else?")
WORDY_FRACTION = 0.25  # of the replies about whole stories, in conversations


def wordy(reply: str, rng: random.Random) -> str:
    """The reply and a phrase that says nothing."""
    return f"{reply} {rng.choice(FILLERS)}"


def plain(reply: str) -> str:
    """The reply without such a phrase, if it ends with one."""
    return next(
        (reply.removesuffix(f" {filler}") for filler in FILLERS if reply.endswith(f" {filler}")), reply
    )
