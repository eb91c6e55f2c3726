"""Fixtures of the tests of routing: each backend in turn, a machine without compiled code, and memory full of NaN."""

import pytest
import torch

from capsnet.ops import compiler, fourier, native, squash, streaming
from capsnet.ops.dispatch import routing_backend
from tests.ops.helpers import BACKENDS

LIBRARIES = (native.compiled, fourier._library, squash._compiled)  # caches of compiled libraries


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    """Every backend but the reference in turn, with tiles so small that several are needed."""
    monkeypatch.setattr(streaming, "CACHE", 512)
    with routing_backend(request.param):
        yield request.param


@pytest.fixture
def nothing_compiled(monkeypatch, tmp_path):
    """Set up a machine where nothing has been compiled yet; the folder of its empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for found in LIBRARIES:
        found.cache_clear()
    compiler._warn_once.cache_clear()
    yield tmp_path / "cache" / "capsnet" / "native"
    for found in LIBRARIES:
        found.cache_clear()
    compiler._warn_once.cache_clear()


@pytest.fixture
def poisoned():
    """Fill new memory with NaN."""
    torch.set_deterministic_debug_mode("error")
    assert torch.empty(3).isnan().all()
    yield
    torch.set_deterministic_debug_mode("default")
