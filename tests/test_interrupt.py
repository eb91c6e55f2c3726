"""A first Ctrl-C is noted and waits; a second one does not."""

import signal
import threading

import pytest

from capsnet.interrupt import deferred_interrupt
from tests.training import press_ctrl_c


def test_a_first_ctrl_c_is_noted_and_interrupts_nothing():
    with deferred_interrupt() as interrupted:
        assert not interrupted()
        press_ctrl_c()
        assert interrupted()


def test_a_second_ctrl_c_interrupts_at_once():
    with deferred_interrupt():
        press_ctrl_c()
        with pytest.raises(KeyboardInterrupt):
            press_ctrl_c()


def test_afterwards_ctrl_c_does_what_it_did_before():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(RuntimeError, match="a step failed"), deferred_interrupt():
        raise RuntimeError("a step failed")
    assert signal.getsignal(signal.SIGINT) is before


def test_in_a_thread_which_receives_no_signals_nothing_is_ever_noted():
    noted = []

    def work():
        with deferred_interrupt() as interrupted:
            noted.append(interrupted())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert noted == [False]
