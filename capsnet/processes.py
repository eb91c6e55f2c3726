"""Several processes that train one network: their connection, calls in the first or in all of them, and seeds."""

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar, cast

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
    """Return this process's Fabric, with its own device, connected to the other processes that torchrun started.

    Raises InputError if a node has fewer GPUs than processes.
    """
    device, here = default_device().type, local_process_count()
    if process_count() == 1:  # LightningEnvironment: do not detect a cluster, whose variables may be incomplete
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
    fabric.launch()  # connects them where that has not been done
    return fabric


def _connect(attempt: str) -> None:
    """Connect the processes of one node by a prefix that torchrun's store has not had before.

    Otherwise, restarted processes would find the addresses of those that have ended. Several nodes have no such prefix
    in common, since each node counts its own restarts.
    """
    store = torch.distributed.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    own = torch.distributed.PrefixStore(f"attempt-{attempt}", store)
    torch.distributed.init_process_group(store=own, rank=int(os.environ["RANK"]), world_size=process_count())


def _disconnect() -> None:
    """Close the connection before the interpreter exits, as its threads may crash then."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def first(fabric: Fabric, act: Callable[[], T]) -> T:
    """Call `act` in the first process only, and return its result in all of them; the result must be picklable.

    If it raises, the others raise InputError.
    """
    if fabric.world_size == 1:
        return act()
    given: tuple[T | None, str | None] = (None, None)
    if fabric.is_global_zero:
        try:
            given = act(), None
        except BaseException as error:
            fabric.broadcast((None, str(error)))
            raise
    result, fault = fabric.broadcast(given)
    if fault is not None:
        raise InputError(fault)
    return cast(T, result)


def everywhere(fabric: Fabric, act: Callable[[], T]) -> list[T]:
    """Call `act` in each process, and return the results of all of them; an InputError of one is raised in all."""
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
    """Return the seed of a process's own random numbers; that of the first process is `seed` itself.

    It has 32 bits, since PyTorch's CPU generator uses no more.
    """
    return seed if rank == 0 else int(np.random.SeedSequence((seed, rank, step)).generate_state(1)[0])


def share_cores() -> None:
    """Give each process of a node an equal part of the cores, instead of the one thread that torchrun sets.

    A number in OMP_NUM_THREADS other than torchrun's 1 is kept.
    """
    if process_count() > 1 and os.environ.get("OMP_NUM_THREADS", "1") == "1":
        torch.set_num_threads(max(1, cores() // local_process_count()))


@contextmanager
def lost_process_named() -> Iterator[None]:
    """Convert the error of a collective operation whose other process has ended to InputError."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error):  # gloo has no class
            raise InputError("another process of this training has ended: continue with --resume") from error
        raise
