"""Several processes that train as one: how they find each other, and what they agree on.

Every process runs the same program on the same host data. The order of the batches, their packing into rows and all
random draws on the host depend on the config and the data alone, and every process gets all sampled tokens. A process
places only those parts of a step's arrays that its own devices hold (`gadjax.parallel.mesh.place`). So a run does not
depend on the number of processes, a batch may have fewer parts than there are processes, and the tensor axis may span
them. The cost is small: each process holds the token ids of the data and packs all rows of a step.

Only process 0 writes to the workdir, except for checkpoints, which Orbax writes from all processes.

If a process is gone, the others end within a minute. While they train or export, they print a line that names it and
end with status 75 (`gadjax.parallel.liveness`). Before that, or if it was process 0, JAX aborts them (status 134 in a
shell).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from gadjax.errors import SaidElsewhere, Stopped, UserError, first_line
from gadjax.parallel import jax_internals
from gadjax.parallel.liveness import HEARTBEAT, SHUTDOWN, LivenessWatch

_PATIENCE = 300  # seconds that a process waits for the others to start
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
_MESSAGE = 4096  # bytes that a process can tell the others at once
_watches: list[LivenessWatch] = []  # at most one, from the first `watched` on


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    patience: int = _PATIENCE,
) -> None:
    """Joins the other processes of the run, if there are any. Call it before anything uses JAX's devices.

    Without arguments, the others are found if `srun` started several tasks or this is a host of a TPU pod. Otherwise
    the process is alone, and does not use the network.

    Args:
      coordinator: "HOST:PORT" where process 0 listens. Give all three arguments or none.
      num_processes: the number of processes.
      process_id: the number of this one, from 0.
      patience: seconds to wait for the others. Then the program ends with one line and status 2, as after a
        `UserError`; JAX would end it with a stack trace.

    Raises:
      UserError: the arguments cannot work, or process 0 cannot listen.
    """
    given = {"--coordinator": coordinator, "--num_processes": num_processes, "--process_id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise UserError(f"{' and '.join(missing)} missing: give --coordinator, --num_processes and --process_id")
    if coordinator is not None and num_processes is not None and process_id is not None:
        _check(coordinator, num_processes, process_id)
        if num_processes > 1:
            arguments = dict(coordinator_address=coordinator, num_processes=num_processes, process_id=process_id)
            if process_id == 0:
                _check_free(coordinator)
            where = f"at --coordinator={coordinator}: is process 0 running there, can its port be reached, and are all"
            # JAX must not choose GPUs by a cluster that it finds: it may have nothing to do with this run.
            _join(f"{where} {num_processes} running?", patience, cluster_detection_method="deactivate", **arguments)
    elif _slurm_tasks(os.environ) > 1:
        where = "of the Slurm step: are they all running, and can the first one's ports be reached?"
        _join(where, patience, local_device_ids=_slurm_gpus(os.environ))
    elif _on_tpu_pod(os.environ):
        _join("of the TPU pod: run the same command on all of its hosts (--worker=all)", patience)


def count() -> int:
    """The number of processes that train together."""
    return jax.process_count()


def is_first() -> bool:
    """Whether this is process 0, the one that writes files and prints."""
    return jax.process_index() == 0


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A block that all processes complete, or none: a `UserError` in one of them is raised in all.

    The block's end is a barrier: the others can read afterwards what one process wrote inside. Process 0 raises the
    `UserError`; the others raise `SaidElsewhere`, so that the message is shown once.
    """
    if count() == 1:
        yield
        return
    failure = None
    try:
        yield
    except UserError as error:
        failure = error
    messages = _tell(str(failure) if failure else "")
    failed = [index for index, message in enumerate(messages) if message]
    if not failed:
        return
    where = "" if 0 in failed else f"process {failed[0]}: "
    kind = UserError if is_first() else SaidElsewhere
    raise kind(where + messages[failed[0]]) from failure


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """A block in which the processes work together; this one ends if another is gone (`gadjax.parallel.liveness`).

    All processes enter it at about the same time, and the watch lasts until the program ends. An exception that a lost
    process may have caused is held back until all processes have been met.
    """
    if count() == 1:
        yield
        return
    if not _watches:
        _watches.append(LivenessWatch(jax_internals.coordination_client()))
    try:
        yield
    except (UserError, Stopped):
        raise
    except Exception:  # perhaps of a collective whose other end is gone
        _watches[0].confirm()
        raise


def check_equal(values: Mapping[str, str]) -> None:
    """Raises a `UserError`, as `together` does, unless every process gives the same values.

    Args:
      values: a few short values by name; the names appear in the message.
    """
    first, *others = map(json.loads, _tell(json.dumps(values)))
    for index, told in enumerate(others, start=1):
        if changed := [name.replace("_", " ") for name, value in first.items() if told[name] != value]:
            kind = UserError if is_first() else SaidElsewhere
            raise kind(
                f"process {index} differs from process 0 in its {', '.join(changed)}: start every process with the "
                "same command, on the same files"
            )


def as_first_says(value: bool) -> bool:
    """Process 0's value, in every process; a barrier."""
    return bool(_tell("yes" if value else "")[0])


def as_first_has(array: np.ndarray) -> np.ndarray:
    """Process 0's array, in every process; those of the others have its shape. A barrier."""
    return array if count() == 1 else np.asarray(multihost_utils.broadcast_one_to_all(array))


def _check(coordinator: str, num_processes: int, process_id: int) -> None:
    port = re.fullmatch(r".+:(\d+)", coordinator)
    if not port or not 0 < int(port[1]) < 65536:
        raise UserError(f"--coordinator={coordinator} is not HOST:PORT, such as 10.0.0.1:1234")
    if num_processes < 1 or not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id={process_id} of --num_processes={num_processes}: processes are numbered from 0, one number "
            "each"
        )


def _check_free(coordinator: str) -> None:
    """Raises a `UserError` if the port is taken, on which JAX sometimes crashes."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    port = int(coordinator.rpartition(":")[2])
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=both).close()
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise UserError(
            f"--coordinator={coordinator}: process 0 cannot listen at its port ({reason}): choose another"
        ) from None


def _join(others: str, patience: int, **arguments: Any) -> None:
    """Calls `jax.distributed.initialize`; where it would abort, ends in one line, which contains `others`."""
    joined = threading.Event()

    def give_up() -> None:
        if not joined.wait(patience):
            print(f"error: waited {patience} s for the processes {others}", file=sys.stderr, flush=True)
            os._exit(2)

    threading.Thread(target=give_up, daemon=True).start()
    try:
        jax.distributed.initialize(
            initialization_timeout=patience + 60,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=SHUTDOWN,
            **arguments,
        )
    except RuntimeError as error:
        raise UserError(f"this process cannot join the others ({first_line(error)})") from error
    finally:
        joined.set()


def _slurm_tasks(environ: Mapping[str, str]) -> int:
    """The number of tasks that `srun` started together, this one included; 1 in a batch script or without Slurm."""
    if not all(name in environ for name in _SLURM):
        return 1
    tasks = environ["SLURM_NTASKS"]  # in an interactive shell, which is one task, this is the allocation's number
    return min(int(tasks), int(environ.get("SLURM_STEP_NUM_TASKS", tasks)))


def _slurm_gpus(environ: Mapping[str, str]) -> list[int] | None:
    """The indices of this task's GPUs among those that it sees, or None to leave the choice to JAX.

    JAX takes one GPU, with the task's number. With one task per node this would leave GPUs idle, and with
    --gpus-per-task, where a task sees its own GPU only, it would name one that is not there.
    """
    seen = [gpu for gpu in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    one_a_node = environ.get("SLURM_STEP_NUM_NODES") == environ.get("SLURM_STEP_NUM_TASKS", environ["SLURM_NTASKS"])
    return list(range(len(seen))) if seen and (one_a_node or len(seen) == 1) else None


def _on_tpu_pod(environ: Mapping[str, str]) -> bool:
    """Whether this is one of several TPU hosts, as `jax.distributed.initialize` will find, which fails on a single one.

    The metadata server is asked on a TPU VM only. Notebooks with a TPU name their single host in the environment.
    """
    if not jax_internals.on_tpu_vm():
        return False
    hosts = environ.get("TPU_PROCESS_ADDRESSES", environ.get("TPU_WORKER_HOSTNAMES"))
    if hosts is not None:
        return "," in hosts or int(environ.get("MEGASCALE_NUM_SLICES", 1)) > 1
    return jax_internals.gce_tpu_hosts() > 1


def _tell(message: str) -> list[str]:
    """The messages of all processes, cut to `_MESSAGE` bytes; a barrier."""
    if count() == 1:
        return [message]
    own = np.zeros(_MESSAGE, np.uint8)
    data = message.encode()[:_MESSAGE]
    own[: len(data)] = np.frombuffer(data, np.uint8)
    everyone = multihost_utils.process_allgather(own)  # [processes, bytes]
    return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in everyone]
