"""The processes of a training: their numbers in torchrun's environment, and `--devices`, which starts torchrun."""

import logging
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

from capsnet.errors import InputError
from capsnet.files import atomic_write
from capsnet.interrupt import SIGNALS, Interrupted

STARTED_BY = "torchrun.txt"


def launched() -> bool:
    """Return whether torchrun has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def process_count() -> int:
    """Return the number of processes that torchrun has started on all nodes; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def local_process_count() -> int:
    """Return the number of processes that torchrun has started on this node; 1 without it."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if launched() else 1


def is_first() -> bool:
    """Return whether this process prints and writes: it has rank 0, or is the only one."""
    return not launched() or os.environ["RANK"] == "0"


def is_first_here() -> bool:
    """Return whether this process prints the errors of its node."""
    return not launched() or os.environ["LOCAL_RANK"] == "0"


def check_counts(devices: int | None, nodes: int | None) -> None:
    """Raise InputError for numbers of devices and nodes that are below 1 or differ from those of torchrun."""
    for name, count in (("devices", devices), ("nodes", nodes)):
        if count is not None and count < 1:
            raise InputError(f"--{name} {count}: a training takes at least 1")
    if not launched():
        if nodes is not None and nodes > 1:
            raise InputError(
                f"--nodes {nodes} needs torchrun on every node, which starts the processes: run `torchrun --nnodes "
                f"{nodes} --nproc-per-node {devices or 1} ... -m capsnet train ...` as docs/SCALING.md says"
            )
        return
    here = local_process_count()
    for name, count, started in (("devices", devices, here), ("nodes", nodes, process_count() // here)):
        if count is not None and count != started:
            raise InputError(f"--{name} {count}, but torchrun has started {started}: leave --{name} out")


def check_batch(batch_size: int, processes: int) -> None:
    """Raise InputError for a batch with fewer images than processes."""
    if batch_size < processes:
        raise InputError(
            f"--batch-size {batch_size} is too small for {processes} processes: it has to be at least {processes}"
        )


def launch(devices: int) -> None:
    """Run this process's command line in `devices` processes on this machine, by torchrun, and wait for them.

    Raises Interrupted for a signal, once the processes have ended, and SystemExit for a process that fails, with the
    status of the one that failed first.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    heard = [number.name for number in SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    options = ["--standalone", f"--nproc-per-node={devices}", f"--signals-to-handle={','.join(heard)}"]
    logging.disable()  # the process that fails prints its error
    try:
        run(parse_args([*options, "-m", "--", "capsnet", *sys.argv[1:]]))
    except ChildFailedError as error:
        code = min((failure.timestamp, failure.exitcode) for failure in error.failures.values())[1]
        sys.exit(code if code > 0 else 128 - code)  # -9 after SIGKILL: it comes before others of the same second
    except SignalException as stop:
        raise Interrupted(stop.sigval) from None
    finally:
        logging.disable(logging.NOTSET)


def note_start(folder: Path) -> None:
    """Write the id of the torchrun that begins a run, if any, into the run's folder."""
    if launched():
        with atomic_write(folder / STARTED_BY) as part:
            part.write_text(os.environ["TORCHELASTIC_RUN_ID"])


def is_restart(folder: Path) -> bool:
    """Return whether this process was restarted by the torchrun that began the run in this folder.

    A torchrun without an id, as with `--master-port` and without `--rdzv-id`, cannot be recognised.
    """
    path = folder / STARTED_BY
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return name != "none" and path.is_file() and path.read_text() == name


def leave(status: int) -> NoReturn:
    """End this process; immediately if it is connected with others, because the connection's threads may abort it."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        os._exit(status)
    sys.exit(status)
