"""The processes that train one network together: what one of them does for all, and what all have to agree on."""

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.distributed
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment
from lightning_fabric.strategies import DDPStrategy

from capsnet.errors import InputError
from capsnet.hardware import cores, default_device, device_count
from capsnet.launch import local_process_count, process_count

Precision = Literal["32-true", "bf16-mixed"]
T = TypeVar("T")


def join(precision: Precision = "32-true") -> Fabric:
    """The Fabric of this process, on a device of its own, connected with the other processes that torchrun started.

    Raises InputError where a node has fewer GPUs than processes.
    """
    device, here = default_device().type, local_process_count()
    if process_count() == 1:  # LightningEnvironment: no cluster is looked for, whose variables might be incomplete
        return Fabric(accelerator=device, devices=1, precision=precision, plugins=[LightningEnvironment()])
    if device != "cpu" and here > device_count():
        raise InputError(f"{here} processes need a GPU each, and this machine has {device_count()}: start fewer")
    strategy = DDPStrategy(gradient_as_bucket_view=True)
    nodes = process_count() // here
    fabric = Fabric(accelerator=device, devices=here, num_nodes=nodes, strategy=strategy, precision=precision)
    if not torch.distributed.is_initialized():
        atexit.register(_disconnect)
        if os.environ["TORCHELASTIC_USE_AGENT_STORE"] == "True" and nodes == 1:
            _connect(os.environ["TORCHELASTIC_RESTART_COUNT"])
    fabric.launch()  # which connects them where that has not been done
    return fabric


def _connect(attempt: str) -> None:
    """Connect the processes of one node through names that torchrun's store has not seen before.

    PyTorch would have processes that are started again find the addresses of those that have ended. Of several nodes
    each counts its own restarts, so that they have no such name in common.
    """
    store = torch.distributed.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    own = torch.distributed.PrefixStore(f"attempt-{attempt}", store)
    torch.distributed.init_process_group(store=own, rank=int(os.environ["RANK"]), world_size=process_count())


def _disconnect() -> None:
    """End the connection before Python's own end, which its threads may not survive."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def first(fabric: Fabric, act: Callable[[], T]) -> T:
    """What `act` returns in the first process, which alone calls it; what it raises there ends the others too.

    They raise InputError. What is returned has to be picklable.
    """
    if fabric.world_size == 1:
        return act()
    given: tuple[Any, str | None] = (None, None)
    if fabric.is_global_zero:
        try:
            given = act(), None
        except BaseException as error:
            fabric.broadcast((None, str(error)))
            raise
    result, fault = fabric.broadcast(given)
    if fault is not None:
        raise InputError(fault)
    return result


def everywhere(fabric: Fabric, act: Callable[[], T]) -> list[T]:
    """What `act` returns in each process, in all of them; an InputError of one process is raised in all."""
    if fabric.world_size == 1:
        return [act()]
    given: tuple[T | None, str | None]
    try:
        given = act(), None
    except InputError as error:
        given = None, str(error)
    gathered: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(gathered, given)
    for _, fault in gathered:
        if fault is not None:
            raise InputError(fault)
    return [result for result, _ in gathered]


def process_seed(seed: int, rank: int, step: int = 0) -> int:
    """The seed of a process's own random numbers: the first has the seed itself, every other another one.

    It has 32 bits, as PyTorch's generator on a CPU takes no more of a seed.
    """
    return seed if rank == 0 else int(np.random.SeedSequence((seed, rank, step)).generate_state(1)[0])


def share_cores() -> None:
    """Give each process of a node an equal part of the cores; torchrun would give each one thread.

    A number of threads in OMP_NUM_THREADS other than torchrun's 1 stays.
    """
    if process_count() > 1 and os.environ.get("OMP_NUM_THREADS", "1") == "1":
        torch.set_num_threads(max(1, cores() // local_process_count()))


@contextmanager
def lost_process_named() -> Iterator[None]:
    """Raise InputError where a collective operation fails because another process has ended."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error):  # which has no class
            raise InputError("another process of this training has ended: go on with --resume") from error
        raise
