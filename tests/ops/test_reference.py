"""The reference is Procedure 1 and has the properties that the paper describes."""

import pytest
import torch

from capsnet.errors import InputError
from capsnet.ops import reference
from capsnet.ops.reference import couple, dynamic_routing, routing_trace, vote


@pytest.fixture
def votes():
    """Votes [b, i, j, e] that agree and disagree enough to move the couplings."""
    return torch.randn(4, 6, 3, 5, dtype=torch.float64)


def test_a_vote_is_the_child_times_the_matrix_of_the_pair():
    children, weight = torch.randn(2, 4, 3), torch.randn(4, 5, 3, 6)
    votes = vote(children, weight)
    assert votes.shape == (2, 4, 5, 6)
    torch.testing.assert_close(votes[1, 2, 3], children[1, 2] @ weight[2, 3])


def test_each_child_distributes_1_over_its_parents(votes):
    for couplings, _ in routing_trace(votes, 3):
        torch.testing.assert_close(couplings.sum(dim=-1), torch.ones(4, 6, dtype=torch.float64))


def test_couplings_are_uniform_before_any_agreement(votes):
    couplings, _ = next(routing_trace(votes))
    torch.testing.assert_close(couplings, torch.full((4, 6, 3), 1 / 3, dtype=torch.float64))


def test_couplings_start_at_the_prior(votes):
    prior = torch.randn(6, 3, dtype=torch.float64)
    couplings, _ = next(routing_trace(votes, prior=prior))
    torch.testing.assert_close(couplings, prior.softmax(dim=-1).expand(4, 6, 3))


def test_with_none_of_the_above_a_childs_couplings_sum_to_less_than_1(votes):
    for couplings, _ in routing_trace(votes, none_of_the_above=True):
        assert (couplings.sum(dim=-1) < 1).all()
    torch.testing.assert_close(
        couple(votes.new_zeros(1, 1, 3), none_of_the_above=True), votes.new_full((1, 1, 3), 1 / 4)
    )


def test_couplings_grow_to_a_parent_on_which_the_children_agree():
    votes = torch.zeros(1, 3, 2, 2)
    votes[0, :, 0] = torch.tensor([1.0, 0.0])  # all children agree about the first parent
    votes[0, :, 1] = torch.tensor([[1.0, 0.0], [-0.5, 0.9], [-0.5, -0.9]])  # and not about the second
    shares = [couplings[0, :, 0].mean() for couplings, _ in routing_trace(votes)]
    assert shares[0] < shares[1] < shares[2]


def test_children_in_another_order_have_their_couplings_in_that_order(votes):
    order = torch.randperm(6)
    for (couplings, _), (reordered, _) in zip(routing_trace(votes), routing_trace(votes[:, order]), strict=True):
        torch.testing.assert_close(reordered, couplings[:, order])


@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
def test_r_iterations_are_r_weighted_sums(votes, iterations, monkeypatch):
    squashed = []
    monkeypatch.setattr(reference, "squash", lambda s: squashed.append(s) or s)
    assert len(list(routing_trace(votes, iterations))) == iterations
    assert len(squashed) == iterations


def test_the_parents_are_those_of_the_traces_last_iteration(votes):
    *_, (_, parents) = routing_trace(votes, 2, none_of_the_above=True)
    assert torch.equal(dynamic_routing(votes, 2, none_of_the_above=True), parents)


def test_the_trace_computes_an_iteration_when_it_is_requested(votes):
    trace = routing_trace(votes, iterations=10**9)
    assert len([next(trace) for _ in range(2)]) == 2


@pytest.mark.parametrize("iterations", [0, -1])
def test_fewer_than_one_iteration_is_refused(votes, iterations):
    with pytest.raises(InputError, match=f"routing takes at least one iteration, not {iterations}"):
        dynamic_routing(votes, iterations)


def test_an_unknown_gradient_is_refused(votes):
    with pytest.raises(InputError, match="gradient is 'all' or 'last', not 'first'"):
        dynamic_routing(votes, gradient="first")


def test_the_trace_refuses_its_arguments_at_the_call_and_not_at_the_first_iteration(votes):
    with pytest.raises(InputError, match="routing takes at least one iteration, not 0"):
        routing_trace(votes, 0)
    with pytest.raises(InputError, match="gradient is 'all' or 'last', not 'first'"):
        routing_trace(votes, gradient="first")
