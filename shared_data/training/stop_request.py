"""Ctrl-C during training: finish the step, save, leave.

with StopRequest() as stop: …  if stop.requested: save and leave
"""

import signal
import threading
from types import FrameType
from typing import Any


class StopRequest:
    """Inside `with StopRequest() as stop:`, Ctrl-C and SIGTERM only set `stop.requested`; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
