"""Signals that ask a process to end, taken at a good moment."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interrupted(KeyboardInterrupt):
    """A signal has asked the process to end: Ctrl-C, or what Slurm, Docker and `timeout` send, or a closed terminal."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def deferred_interrupt(*, patient: bool = False) -> Iterator[Callable[[], Interrupted | None]]:
    """Take note of a first signal, so that a training step ends; a second one interrupts at once.

    A patient process waits with a second one too: a launcher passes on a signal that the process has already had.
    """
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if noted and not patient:
            raise Interrupted(number)
        noted.append(number)

    with _handled_by(note):
        yield lambda: Interrupted(noted[0]) if noted else None


@contextmanager
def interrupting() -> Iterator[None]:
    """Raise Interrupted at a signal, as Python does by itself for Ctrl-C alone."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    with _handled_by(interrupt):
        yield


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle signals for a while, but for those that the process is to ignore, as `nohup` has it ignore SIGHUP.

    Handlers that were not set from Python stay in place too.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone receives signals
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
