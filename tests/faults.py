"""The known faults of public implementations: how each would look here, and the test that fails with it.

They were found in public implementations of capsule networks, most of which have 99 % accuracy on MNIST. A number is a
fault, a letter one of its forms. `test_faults.py` makes each of them in a copy of the package.
"""

from typing import NamedTuple


class Fault(NamedTuple):
    """One place in the package: the right code, the code with the fault, and the test that fails."""

    file: str
    right: str
    wrong: str
    test: str


FAULTS = {
    "1a the softmax runs over the children: reference": Fault(
        "ops/reference.py",
        "logits.softmax(dim=-1)  # over parents j\n",
        "logits.softmax(dim=1)\n",
        "ops/test_reference.py::test_each_child_distributes_1_over_its_parents",
    ),
    "1b the softmax runs over the children: streaming": Fault(
        "ops/streaming.py",
        "logits.softmax(dim=0)  # over parents j, and none of the above\n",
        "logits.softmax(dim=2)\n",
        "ops/test_routing.py::test_routing_with_any_options_equals_the_reference",
    ),
    "2 a primary capsule is neighbouring pixels of one channel": Fault(
        "layers.py",
        'rearrange(x * self.scale, "b (types dim) h w -> b types (h w) dim", dim=self.dim)',
        "(x * self.scale).reshape(len(x), 1, -1, self.dim)",
        "test_layers.py::test_a_bright_pixel_changes_one_dimension_of_the_capsule_of_its_type_and_place",
    ),
    "3a the logits are shared over the batch: reference": Fault(
        "ops/reference.py",
        '"b i j e, b j e -> b i j")',
        '"b i j e, b j e -> b i j").mean(dim=0)',
        "ops/test_procedure_1.py::test_an_image_is_routed_the_same_alone_as_in_a_batch",
    ),
    "3b the logits are shared over the batch: streaming": Fault(
        "ops/streaming.py",
        "logits = _agreement(projected, tile)\n",
        "logits = _agreement(projected, tile)\n        logits = logits.mean(dim=1, keepdim=True).expand_as(logits)\n",
        "ops/test_routing.py::test_an_image_is_routed_the_same_alone_as_in_a_batch",
    ),
    "3c the logits are shared over the batch: native": Fault(
        "ops/native.c",
        "couplings[j] = dot(vote, v + j * E);\n",
        "couplings[j] = (vec){0} + dot(vote, v + j * E)[0];\n",
        "ops/test_routing.py::test_an_image_is_routed_the_same_alone_as_in_a_batch",
    ),
    "4a r + 1 iterations for r: reference": Fault(
        "ops/reference.py",
        "range(1, iterations + 1)",
        "range(0, iterations + 1)",
        "ops/test_reference.py::test_r_iterations_are_r_weighted_sums",
    ),
    "4b r + 1 iterations for r: backends": Fault(
        "ops/autograd.py",
        "    shape = (iterations, ",
        "    iterations += 1\n    shape = (iterations, ",
        "ops/test_routing.py::test_r_iterations_are_r_weighted_sums",
    ),
    "4c the number of iterations is never read": Fault(
        "layers.py",
        "self.iterations, self.gradient = iterations,",
        "self.iterations, self.gradient = 3,",
        "test_models.py::test_an_option_of_mathematics_changes_the_capsules_of_the_same_parameters",
    ),
    "5a the gradient at a zero vector is NaN": Fault(
        "ops/squash.py",
        "torch.linalg.vector_norm(s, dim=-1, keepdim=True, dtype=dtype)",
        "s.square().sum(dim=-1, keepdim=True).sqrt()",
        "ops/test_squash.py::test_at_a_zero_vector_the_result_and_the_gradient_are_exactly_zero",
    ),
    "5b the squash is softened": Fault(
        "ops/squash.py",
        "(s * (length / (1 + length.square())))",
        "(s * (length / (0.5 + length.square())))",
        "ops/test_squash.py::test_a_vector_of_length_s_becomes_one_of_length_s2_over_1_plus_s2",
    ),
    "6a the margin loss is a mean over classes": Fault(
        "losses.py",
        '"b j -> b", "sum"',
        '"b j -> b", "mean"',
        "test_losses.py::test_the_margin_loss_is_eq_4_summed_over_classes_and_averaged_over_images",
    ),
    "6b the margin loss is not squared": Fault(
        "losses.py",
        "(present - lengths).relu().square()",
        "(present - lengths).relu()",
        "test_losses.py::test_the_margin_loss_is_eq_4_summed_over_classes_and_averaged_over_images",
    ),
    "6c the margin loss is of a softmax of the lengths": Fault(
        "losses.py",
        "    truth = _multi",
        "    lengths = lengths.softmax(dim=-1)\n    truth = _multi",
        "test_losses.py::test_the_margin_loss_is_eq_4_summed_over_classes_and_averaged_over_images",
    ),
    "7 the reconstruction loss is a mean over pixels": Fault(
        "losses.py",
        '"b c h w -> b", "sum"',
        '"b c h w -> b", "mean"',
        "test_losses.py::test_the_reconstruction_loss_is_summed_over_pixels_and_averaged_over_images",
    ),
    "8a the squash runs over the capsules": Fault(
        "ops/squash.py",
        "dim=-1, keepdim=True, dtype=dtype",
        "dim=-2, keepdim=True, dtype=dtype",
        "ops/test_squash.py::test_each_vector_along_the_last_axis_is_squashed_on_its_own",
    ),
    "8b the squash takes each number for a vector": Fault(
        "ops/squash.py",
        "torch.linalg.vector_norm(s, dim=-1, keepdim=True, dtype=dtype)",
        "s.abs()",
        "ops/test_squash.py::test_the_direction_is_kept",
    ),
    "9a a class is predicted by a softmax over the batch": Fault(
        "evaluation.py",
        "self.scores.argmax(dim=-1)",
        "self.scores.softmax(dim=0).argmax(dim=-1)",
        "test_honesty.py::test_a_class_is_predicted_for_each_image_on_its_own",
    ),
    "9b the capsule to reconstruct from is found by a softmax over the batch": Fault(
        "models.py",
        "lengths.argmax(dim=-1)",
        "lengths.softmax(dim=0).argmax(dim=-1)",
        "test_models.py::test_the_given_classes_are_reconstructed_or_else_the_longest_capsules",
    ),
    "10a test images are shifted": Fault(
        "evaluation.py",
        "batches(images, batch_size)",
        "batches(images, batch_size, shift=2, generator=torch.Generator())",
        "test_honesty.py::test_images_are_evaluated_as_they_are_and_in_order",
    ),
    "10b the true label is the mask at test": Fault(
        "evaluation.py",
        'labels if masked_by == "label" else None',
        "labels",
        "test_honesty.py::test_a_test_images_label_has_no_influence_on_its_reconstruction",
    ),
    "10c the best epoch is picked on the test images": Fault(
        "training.py",
        "images = self.data.validation\n",
        "images = self.data.test\n",
        "test_honesty.py::test_training_never_evaluates_on_a_test_image",
    ),
    "10d the true label is the mask in a figure": Fault(
        "analysis/reconstructions.py",
        "masked_by=mask,",
        'masked_by="label",',
        "analysis/test_reconstructions.py::test_the_reconstruction_is_masked_by_the_prediction_and_never_by_the_label",
    ),
    "11a a perturbation sets a dimension instead of adding to it": Fault(
        "analysis/perturbations/measure.py",
        "row[:, label, dimension] += offsets",
        "row[:, label, dimension] = offsets",
        "analysis/perturbations/test_measure.py::"
        "test_a_perturbation_adds_to_one_dimension_of_one_capsule_and_changes_nothing_else",
    ),
    "11b a perturbation adds to all capsules": Fault(
        "analysis/perturbations/measure.py",
        "row[:, label, dimension] += offsets",
        "row[:, :, dimension] += offsets[:, None]",
        "analysis/perturbations/test_measure.py::"
        "test_a_perturbation_adds_to_one_dimension_of_one_capsule_and_changes_nothing_else",
    ),
    "11c a perturbation adds to all dimensions": Fault(
        "analysis/perturbations/measure.py",
        "row[:, label, dimension] += offsets",
        "row[:, label] += offsets[:, None]",
        "analysis/perturbations/test_measure.py::"
        "test_a_perturbation_adds_to_one_dimension_of_one_capsule_and_changes_nothing_else",
    ),
    "12 images are normalised to mean 0, the reconstructions are not": Fault(
        "data/batches.py",
        "pixels.float() / 255",
        "(pixels.float() / 255 - 0.1307) / 0.3081",
        "data/test_batches.py::test_pixels_are_floats_from_0_to_1",
    ),
    "13 the matrices start at N(0, 1)": Fault(
        "layers.py",
        "nn.init.normal_(self.weight, std=0.1)",
        "nn.init.normal_(self.weight, std=1)",
        "test_layers.py::test_matrices_start_small_enough_for_the_capsules_to_learn",
    ),
}
