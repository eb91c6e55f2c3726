"""Every backend equals Procedure 1 in loops over single numbers, and so do its gradients."""

import pytest
import torch
from einops import einsum

from capsnet.ops.dispatch import routing_backend
from capsnet.ops.reference import dynamic_routing, routing_trace, vote
from capsnet.ops.routing import route
from capsnet.ops.squash import squash
from tests.ops.gradients import with_gradients
from tests.ops.helpers import no_compiler
from tests.ops.scalar_routing import scalar_routing


def inputs(b=2, i=3, j=2, d=2, e=3):
    """Children [b, i, d] and a weight [i, j, d, e]."""
    return torch.randn(b, i, d, dtype=torch.float64), torch.randn(i, j, d, e, dtype=torch.float64)


def with_votes(children, weight, *args, **options):
    return dynamic_routing(vote(children, weight), *args, **options)


def by(backend):
    """Routing by a given backend; for so few votes `route` would choose the reference."""

    def call(*args, **options):
        with routing_backend(backend):
            return route(*args, **options)

    return call


ROUTINGS = [
    pytest.param(with_votes, id="reference"),
    pytest.param(by("streaming"), id="streaming"),
    pytest.param(by("native"), id="native", marks=no_compiler),
]


@pytest.mark.parametrize("gradient", ["all", "last"])
@pytest.mark.parametrize("none_of_the_above", [False, True], ids=["as printed", "none_of_the_above"])
@pytest.mark.parametrize("extras", [(), ("prior",), ("bias",), ("prior", "bias")], ids=str)
@pytest.mark.parametrize("iterations", [1, 2, 3])
@pytest.mark.parametrize("routing", ROUTINGS)
def test_routing_equals_procedure_1_with_one_number_at_a_time(routing, iterations, extras, none_of_the_above, gradient):
    children, weight = inputs()
    shapes = {"prior": weight.shape[:2], "bias": weight.shape[1::2]}  # [i, j] and [j, e]
    parameters = [torch.randn(shapes[name], dtype=torch.float64) for name in extras]

    def values_and_gradients(function):
        def call(children, weight, *parameters):
            options = dict(zip(extras, parameters, strict=True)) | {
                "none_of_the_above": none_of_the_above,
                "gradient": gradient,
            }
            return function(children, weight, iterations, **options)

        return with_gradients(call, children, weight, *parameters)

    torch.testing.assert_close(
        values_and_gradients(routing), values_and_gradients(scalar_routing), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("routing", ROUTINGS)
def test_the_gradient_option_changes_the_gradient_only(routing):
    children, weight = inputs()
    all_iterations = with_gradients(lambda *inputs: routing(*inputs, gradient="all"), children, weight)
    last_iteration = with_gradients(lambda *inputs: routing(*inputs, gradient="last"), children, weight)
    torch.testing.assert_close(all_iterations[0], last_iteration[0])
    for all_, last in zip(all_iterations[1:], last_iteration[1:], strict=True):
        assert (all_ - last).abs().max() > 0.01


@pytest.mark.parametrize("routing", ROUTINGS)
def test_gradient_last_treats_the_couplings_as_constants(routing):
    children, weight = inputs()
    *_, (couplings, _) = routing_trace(vote(children, weight))

    def one_sum(children, weight):
        return squash(einsum(couplings, children, weight, "b i j, b i d, i j d e -> b j e"))

    result = with_gradients(lambda *inputs: routing(*inputs, gradient="last"), children, weight)
    torch.testing.assert_close(result, with_gradients(one_sum, children, weight))


@pytest.mark.parametrize("routing", ROUTINGS)
def test_an_image_is_routed_the_same_alone_as_in_a_batch(routing):
    children, weight = inputs(b=5, i=7)
    together = routing(children, weight)
    alone = torch.cat([routing(image, weight) for image in children.split(1)])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("routing", ROUTINGS)
def test_the_order_of_the_children_does_not_matter_to_the_parents(routing):
    children, weight = inputs(i=7)
    order = torch.randperm(7)
    torch.testing.assert_close(routing(children[:, order], weight[order]), routing(children, weight))


@pytest.mark.parametrize("routing", ROUTINGS)
def test_parents_in_another_order_come_out_in_that_order(routing):
    children, weight = inputs(j=5)
    order = torch.randperm(5)
    torch.testing.assert_close(routing(children, weight[:, order]), routing(children, weight)[:, order])
