"""A first signal is noted and waits; a second one does not."""

import signal
import threading

import pytest

from capsnet.interrupt import Interrupted, deferred_interrupt, interrupting
from tests.training import press_ctrl_c


def test_a_first_ctrl_c_is_noted_and_interrupts_nothing():
    with deferred_interrupt() as interrupted:
        assert not interrupted()
        press_ctrl_c()
        assert interrupted()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_signal_that_ends_a_process_is_noted_by_its_number(number):
    with deferred_interrupt() as interrupted:
        signal.raise_signal(number)
        assert interrupted().number == number


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_outside_a_step_a_signal_interrupts_at_once(number):
    with pytest.raises(Interrupted) as raised, interrupting():
        signal.raise_signal(number)
    assert raised.value.number == number


def test_a_signal_that_the_process_is_to_ignore_is_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup has it
    try:
        with deferred_interrupt() as interrupted:
            signal.raise_signal(signal.SIGHUP)
            assert interrupted() is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_ctrl_c_interrupts_at_once():
    with deferred_interrupt():
        press_ctrl_c()
        with pytest.raises(KeyboardInterrupt):
            press_ctrl_c()


def test_a_patient_process_waits_with_a_second_signal_too():
    with deferred_interrupt(patient=True) as interrupted:
        press_ctrl_c()
        signal.raise_signal(signal.SIGTERM)
        assert interrupted().number == signal.SIGINT


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
    assert noted == [None]
