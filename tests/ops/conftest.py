"""Fixtures of the tests of routing: each of its fast paths in turn, and memory that holds nothing of use."""

import pytest
import torch

from capsnet.ops import compiler, fourier, fused_squash, native, streaming
from capsnet.ops.paths import routing_path
from tests.ops.routes import PATHS

LIBRARIES = (native.compiled, fourier._library, fused_squash._compiled)  # which are kept once they are compiled


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    """Every path but the twin in turn, with tiles so small that several are needed."""
    monkeypatch.setattr(streaming, "CACHE", 512)
    with routing_path(request.param):
        yield request.param


@pytest.fixture
def nothing_compiled(monkeypatch, tmp_path):
    """A machine where nothing has been compiled yet, and its empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for found in LIBRARIES:
        found.cache_clear()
    compiler._warn.cache_clear()
    yield tmp_path / "cache" / "capsnet" / "native"
    for found in LIBRARIES:
        found.cache_clear()
    compiler._warn.cache_clear()


@pytest.fixture
def poisoned():
    """Memory is NaN where nothing has been written yet."""
    torch.set_deterministic_debug_mode("error")
    assert torch.empty(3).isnan().all()
    yield
    torch.set_deterministic_debug_mode("default")
