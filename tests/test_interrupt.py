"""The first signal is recorded; a second one interrupts at once."""

import signal
import threading

import pytest

from capsnet.interrupt import Interrupted, deferred_interrupt, interrupting
from tests.training import press_ctrl_c


def test_the_first_ctrl_c_is_recorded_and_does_not_interrupt():
    with deferred_interrupt() as interrupted:
        assert not interrupted()
        press_ctrl_c()
        assert interrupted()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_signal_that_ends_a_process_is_recorded_by_its_number(number):
    with deferred_interrupt() as interrupted:
        signal.raise_signal(number)
        assert interrupted().number == number


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupting_raises_at_a_signal(number):
    with pytest.raises(Interrupted) as raised, interrupting():
        signal.raise_signal(number)
    assert raised.value.number == number


def test_a_signal_that_the_process_ignores_stays_ignored():
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


def test_a_patient_process_only_records_a_second_signal_too():
    with deferred_interrupt(patient=True) as interrupted:
        press_ctrl_c()
        signal.raise_signal(signal.SIGTERM)
        assert interrupted().number == signal.SIGINT


def test_the_handlers_of_before_are_restored():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(RuntimeError, match="a step failed"), deferred_interrupt():
        raise RuntimeError("a step failed")
    assert signal.getsignal(signal.SIGINT) is before


def test_in_a_thread_no_signal_is_recorded():
    recorded = []

    def work():
        with deferred_interrupt() as interrupted:
            recorded.append(interrupted())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert recorded == [None]
