"""The measurement of routing: what it refuses, and what it makes of its times."""

from dataclasses import replace

import pytest
import torch

import routing
from implementations import NAIVE, PAPER, Implementation, Shape
from measuring import Limits, WrongResult
from naive import naive_route
from routing import FULL, LARGE, QUICK, SLOWEST, Times, growth, measure, relative_times, roofline

CPU = torch.device("cpu")


@pytest.fixture
def fake_route(monkeypatch):
    """Puts a fake in the place of `route`."""

    def put(fake):
        monkeypatch.setattr(routing, "implementations", lambda *_: {"naive": NAIVE, "auto": Implementation(fake)})

    return put


def test_of_a_fake_route_with_a_wrong_result_nothing_is_reported(fake_route):
    fake_route(lambda children, weight: 1.001 * naive_route(children, weight))
    with pytest.raises(WrongResult, match="auto routes"):
        next(measure(replace(QUICK, rounds=1)))
    with pytest.raises(WrongResult, match="auto routes"):
        relative_times(QUICK.listed, 1, CPU)


def test_growth_in_proportion_to_the_work_has_the_ratio_1_once_a_call_takes_10_ms(monkeypatch):
    monkeypatch.setattr(routing, "time_route", lambda one, given: Times(0.0, 0.004 * given[0].shape[1]))
    grown = growth("i", tuple(Shape(1, i, 2, 1, 1) for i in (1, 3, 6)), 3, CPU)
    assert grown["sizes"] == [1, 3, 6]
    assert grown["ratio"] == [None, 1.0, pytest.approx(1.0)]


def test_the_slowest_shapes_of_the_list_are_timed_a_second_time_all_in_as_many_rounds(fake_route, monkeypatch):
    fake_route(lambda children, weight: naive_route(children, weight))
    timed = []

    def time_route(one, given):
        timed.append(tuple(given[0].shape))
        return Times(0.001, 0.002 if one is NAIVE else 0.002 * given[0].shape[1])

    monkeypatch.setattr(routing, "time_route", time_route)
    listed = relative_times([Shape(1, i, 2) for i in range(1, SLOWEST + 3)], 5, CPU)
    assert [one["shape"][1] for one in listed["each"]] == list(range(1, SLOWEST + 3))
    assert [one["shape"][1] for one in listed["again"]] == list(range(SLOWEST + 2, 2, -1))
    assert listed["again"][0]["relative_time"] == pytest.approx((0.001 + 0.002 * (SLOWEST + 2)) / 0.003)
    calls = 2 * (1 + 5)  # of both: one that does not count, and five rounds
    assert {timed.count((1, i, 8)) for i in (1, 2)} == {calls}
    assert {timed.count((1, i, 8)) for i in range(3, SLOWEST + 3)} == {2 * calls}


def test_the_roofline_is_that_of_the_flop_or_of_the_bytes_whichever_takes_longer():
    shape = Shape(2, 3, 5, 7, 11)
    votes = 2 * 3 * 5 * 11
    flop = 3 * 2 * votes * 7 + 3 * (3 + 2) * 2 * votes
    moved = 4 * (3 * (2 * 3 * 7 + 3 * 5 * 7 * 11) + 2 * 2 * 5 * 11)
    assert roofline(shape, torch.float32, Limits(1.0, 1e9)) == flop
    assert roofline(shape, torch.float32, Limits(1e9, 1.0)) == moved


def test_a_full_measurement_goes_as_far_as_it_says():
    ends = {axis: (getattr(shapes[0], axis), getattr(shapes[-1], axis)) for axis, shapes in FULL.growth.items()}
    assert ends == {"i": (1152, 100_000), "j": (10, 1000), "b": (1, 1024)}
    assert {PAPER, LARGE} == set(FULL.memory)
    assert "naive" not in FULL.memory[LARGE]
    assert len(FULL.listed) == 2 * 3 * 3 * 5 * 5
