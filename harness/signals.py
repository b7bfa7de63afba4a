"""SIGINT and SIGTERM: the first asks running trials to end after their epoch, the second ends the process at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

LISTENED = (signal.SIGINT, signal.SIGTERM)

GRACE_S = 25.0
"""Seconds that running trials have to end their epoch: Slurm and Kubernetes send SIGKILL 30 seconds after SIGTERM unless set
otherwise."""

CLEANUP_S = 15.0
"""Seconds after that in which Ray may end; then the process ends without it, and what Ray started notices and follows."""


class Interruption:
    """What was asked for by a signal.

    Attributes:
        signal: The first one; None as long as there was none.
        grace_s: Seconds between the first one and the end of trials that are still within an epoch.
    """

    def __init__(self, grace_s: float = GRACE_S, clock: Callable[[], float] = time.monotonic):
        self.signal: signal.Signals | None = None
        self.grace_s = grace_s
        self._clock = clock
        self._since = 0.0

    def ask(self, received: signal.Signals) -> None:
        """The first signal came."""
        self.signal, self._since = received, self._clock()

    @property
    def asked(self) -> bool:
        """Whether to stop."""
        return self.signal is not None

    @property
    def overdue(self) -> bool:
        """Whether trials have had their time."""
        return self.asked and self._clock() - self._since > self.grace_s

    @property
    def exit_code(self) -> int:
        """As a shell tells a process that a signal ended: 130 for SIGINT, 143 for SIGTERM; 0 without one."""
        return 0 if self.signal is None else 128 + self.signal


@contextmanager
def while_ray_starts() -> Iterator[None]:
    """Within this block SIGTERM ends the process with 143 also where Ray's own handler, which says 15, has it."""
    try:
        yield
    except SystemExit as end:
        raise SystemExit(128 + signal.SIGTERM if end.code == signal.SIGTERM else end.code) from end


@contextmanager
def listening(interruption: Interruption, before_end: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Within this block the first signal is noted and the second ends the process; nothing changes outside the main thread.

    Args:
        interruption: Takes the first one.
        before_end: Called before the process ends at once, to set a terminal in order.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    watch: list[threading.Timer] = []

    def end(code: int) -> None:
        before_end()
        os._exit(code)

    def heard(number: int, frame: FrameType | None) -> None:
        if interruption.asked:
            end(128 + number)
        interruption.ask(signal.Signals(number))
        # Where Ray was hit by the same signal, its calls may never return.
        watch.append(threading.Timer(interruption.grace_s + CLEANUP_S, end, (128 + number,)))
        watch[0].daemon = True
        watch[0].start()

    before = {number: signal.signal(number, heard) for number in LISTENED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for timer in watch:
            timer.cancel()
