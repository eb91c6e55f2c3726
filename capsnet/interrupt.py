"""Signals that ask a process to end, and their handling between two steps of training."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interrupted(KeyboardInterrupt):
    """A signal asks the process to end: Ctrl-C, SIGTERM (of Slurm or Docker), or SIGHUP (of a closed terminal)."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def deferred_interrupt(*, patient: bool = False) -> Iterator[Callable[[], Interrupted | None]]:
    """Record the first signal, which the caller reads after a step; a second signal interrupts at once.

    With `patient`, a second one is only recorded too, since a launcher passes on a signal that the process already got.
    """
    recorded: list[int] = []

    def record(number: int, frame: FrameType | None) -> None:
        if recorded and not patient:
            raise Interrupted(number)
        recorded.append(number)

    with _handled_by(record):
        yield lambda: Interrupted(recorded[0]) if recorded else None


@contextmanager
def interrupting() -> Iterator[None]:
    """Raise Interrupted at a signal; by itself, Python raises KeyboardInterrupt for Ctrl-C only."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    with _handled_by(interrupt):
        yield


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle signals for a while, except those that the process ignores, like SIGHUP under `nohup`.

    Handlers that were not set from Python stay too.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    taken = [number for number in SIGNALS if before[number] not in (signal.SIG_IGN, None)]
    for number in taken:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number])
