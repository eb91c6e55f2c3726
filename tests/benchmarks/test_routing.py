"""The measurement of routing: what it refuses, and what it makes of its times."""

from dataclasses import replace

import pytest
import torch

from capsnet.benchmarks import routing
from capsnet.benchmarks.measuring import Limits, WrongResult
from capsnet.benchmarks.routing import (
    LARGE,
    PAPER,
    QUICK,
    WHOLE,
    WORST,
    Split,
    floor,
    growth,
    measure,
    times_on_the_list,
)
from capsnet.benchmarks.ways import Shape, Way, textbook

CPU = torch.device("cpu")


@pytest.fixture
def fake_door(monkeypatch):
    """Puts a fake in the place of the door."""

    def put(door):
        monkeypatch.setattr(routing, "ways", lambda *_: {"textbook": Way(textbook), "door": Way(door)})

    return put


def test_of_a_fake_door_with_a_wrong_result_nothing_is_reported(fake_door):
    fake_door(lambda children, weight: 1.001 * textbook(children, weight))
    with pytest.raises(WrongResult, match="door routes"):
        next(measure(replace(QUICK, rounds=1)))
    with pytest.raises(WrongResult, match="door routes"):
        times_on_the_list(QUICK.listed, 1, CPU)


def test_what_grows_in_proportion_to_its_work_is_told_as_1_once_a_call_takes_10_ms(monkeypatch):
    monkeypatch.setattr(routing, "split", lambda way, given: Split(0.0, 0.004 * given[0].shape[1]))
    grown = growth("i", tuple(Shape(1, i, 2, 1, 1) for i in (1, 3, 6)), 3, CPU)
    assert grown["sizes"] == [1, 3, 6]
    assert grown["of_proportional"] == [None, 1.0, pytest.approx(1.0)]


def test_the_worst_shapes_of_the_list_are_timed_once_more_all_in_as_many_rounds(fake_door, monkeypatch):
    fake_door(lambda children, weight: textbook(children, weight))
    timed = []

    def split(way, given):
        timed.append(tuple(given[0].shape))
        return Split(0.001, 0.002 if way.call is textbook else 0.002 * given[0].shape[1])

    monkeypatch.setattr(routing, "split", split)
    listed = times_on_the_list([Shape(1, i, 2) for i in range(1, WORST + 3)], 5, CPU)
    assert [one["shape"][1] for one in listed["each"]] == list(range(1, WORST + 3))
    assert [one["shape"][1] for one in listed["again"]] == list(range(WORST + 2, 2, -1))
    assert listed["again"][0]["door_takes"] == pytest.approx((0.001 + 0.002 * (WORST + 2)) / 0.003)
    calls = 2 * (1 + 5)  # of both ways: one that does not count, and five rounds
    assert {timed.count((1, i, 8)) for i in (1, 2)} == {calls}
    assert {timed.count((1, i, 8)) for i in range(3, WORST + 3)} == {2 * calls}


def test_the_floor_is_that_of_the_flop_or_of_the_bytes_whichever_takes_longer():
    shape = Shape(2, 3, 5, 7, 11)
    votes = 2 * 3 * 5 * 11
    flop = 3 * 2 * votes * 7 + 3 * (3 + 2) * 2 * votes
    moved = 4 * (3 * (2 * 3 * 7 + 3 * 5 * 7 * 11) + 2 * 2 * 5 * 11)
    assert floor(shape, torch.float32, Limits(1.0, 1e9)) == flop
    assert floor(shape, torch.float32, Limits(1e9, 1.0)) == moved


def test_a_whole_measurement_goes_as_far_as_it_says():
    ends = {axis: (getattr(shapes[0], axis), getattr(shapes[-1], axis)) for axis, shapes in WHOLE.growth.items()}
    assert ends == {"i": (1152, 100_000), "j": (10, 1000), "b": (1, 1024)}
    assert {PAPER, LARGE} == set(WHOLE.memory)
    assert "textbook" not in WHOLE.memory[LARGE]
    assert len(WHOLE.listed) == 2 * 3 * 3 * 5 * 5
