"""What `import capsnet` offers, and what it does not load for it."""

import ast
import inspect
import subprocess
import sys
from types import ModuleType

import pytest

import capsnet

SLOW = {
    *("lightning_fabric", "huggingface_hub", "matplotlib", "sklearn", "PIL", "pooch", "rich", "tensorboard", "click"),
    "torch._dynamo",
}


def loaded(code):
    """Run some code in a new process, and say which of the slow packages it loaded."""
    code += f"\nimport sys; print(*sorted({SLOW | {'torch', 'numpy'}} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


@pytest.mark.parametrize("name", capsnet.__all__)
def test_a_public_name_is_a_class_or_a_function_from_where_it_is_said_to_be(name):
    public = getattr(capsnet, name)
    assert not isinstance(public, ModuleType)
    assert public.__name__ == name
    assert public.__module__ == capsnet._HOME_OF[name]


def test_the_three_lists_of_public_names_agree():
    checked = next(part for part in ast.parse(inspect.getsource(capsnet)).body if isinstance(part, ast.If))
    for_checkers = {imports.module: tuple(alias.name for alias in imports.names) for imports in checked.body}
    assert for_checkers == capsnet._HOMES
    assert sorted(capsnet._HOME_OF) == capsnet.__all__


def test_a_name_that_there_is_not_is_refused_as_by_any_module():
    with pytest.raises(AttributeError, match="module 'capsnet' has no attribute 'CapsuleNet'"):
        _ = capsnet.CapsuleNet


def test_importing_the_package_loads_nothing_at_all():
    assert loaded("import capsnet") == set()


def test_routing_and_losses_load_torch_and_nothing_slow():
    assert loaded("from capsnet import route, squash, vote, margin_loss, PrimaryCaps, RoutedCaps") == {"torch", "numpy"}
