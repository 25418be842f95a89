"""Superfluous phrases: common in demonstrations by many writers, and what alignment is to remove again.

A reply to a question is a sentence. A part of the replies in instruction tuning ends with a phrase without content
(`conversations.py`; not in conversations about passages), so a fine-tuned model does so as
often. A pair prefers the plain reply (`preferences.py`), and the reward of a wordy one is lower (`rewards.py`). A model can drop such a
habit within a few updates, but cannot learn in them what it has not understood (Zhou et al. 2023, LIMA: alignment teaches which of
its styles a model should use).

    >>> wordy("Mia is kind.", random.Random(0))
"""

from __future__ import annotations

import random

FILLERS = ("I hope this helps.", "That is what the story tells.", "Is there anything else?")
WORDY_FRACTION = 0.25  # of the replies about whole stories, in conversations


def wordy(reply: str, rng: random.Random) -> str:
    """The reply and a superfluous phrase."""
    return f"{reply} {rng.choice(FILLERS)}"


def plain(reply: str) -> str:
    """The reply without such a phrase, if it ends with one."""
    return next(
        (reply.removesuffix(f" {filler}") for filler in FILLERS if reply.endswith(f" {filler}")), reply
    )
