"""Several processes that train as one: how they find each other, and what they agree on.

Every process runs the same program on the same host data: the order of the batches, their packing into rows and what is
drawn on the host are functions of the config and the data alone, and sampled tokens come back whole to every process.
Of a step's arrays each puts on its devices the parts that these hold (`gadjax.parallel.mesh.place`): that is its slice.
So a run does not depend on how many processes share it, a batch may have fewer parts than there are processes, and the
tensor axis may span them. The price is small: each holds the token ids of the data, and packs all rows of a step.

Process 0 alone writes to the workdir, but for checkpoints, which Orbax writes from all of them.

A process that is gone ends the others within a minute: while they train or export with a line that names it and status
75 (`gadjax.parallel.liveness`), before that, or where it was process 0, by JAX's abort (status 134 in a shell).
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
_MESSAGE = 4096  # bytes of what processes tell each other at once
_watches: list[LivenessWatch] = []  # one, once there is something to watch


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    patience: int = _PATIENCE,
) -> None:
    """Joins the other processes of a run, where there are any; before anything else uses JAX's devices.

    Without arguments the others are found where `srun` started several tasks, or on a host of a TPU pod. Anywhere else
    a process is alone, and nothing is waited for or asked over a network.

    Args:
      coordinator: "HOST:PORT" of process 0, which listens there; all three arguments are given, or none.
      num_processes: how many there are.
      process_id: which one this is, from 0.
      patience: seconds to wait for the others. Then the program ends with status 2, as if by a `UserError`: JAX itself
        would end it, with a stack trace.

    Raises:
      UserError: the arguments cannot work, or process 0 cannot listen.
    """
    given = {"--coordinator": coordinator, "--num_processes": num_processes, "--process_id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise UserError(f"{' and '.join(missing)} missing: give --coordinator, --num_processes and --process_id")
    if not missing:
        _check(coordinator, num_processes, process_id)
        if num_processes > 1:
            arguments = dict(coordinator_address=coordinator, num_processes=num_processes, process_id=process_id)
            if process_id == 0:
                _check_free(coordinator)
            where = f"at --coordinator={coordinator}: is process 0 running there, can its port be reached, and are all"
            # Else JAX looks for a cluster that may be none of this run's, to choose GPUs by.
            _join(f"{where} {num_processes} running?", patience, cluster_detection_method="deactivate", **arguments)
    elif _slurm_tasks(os.environ) > 1:
        where = "of the Slurm step: are they all running, and can the first one's ports be reached?"
        _join(where, patience, local_device_ids=_slurm_gpus(os.environ))
    elif _on_tpu_pod(os.environ):
        _join("of the TPU pod: run the same command on all of its hosts (--worker=all)", patience)


def count() -> int:
    """How many processes train together."""
    return jax.process_count()


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return jax.process_index() == 0


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A block that all processes get through, or none: a `UserError` of one of them is raised by all.

    Also a barrier: what one process wrote inside, the others can read after it. The first process raises the error
    with its message; the others raise `SaidElsewhere`, so that it is shown once.
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

    All enter it at about the same time. They are watched until the program ends; an error of this block that a lost
    process may be the cause of is held back until all have been met.
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
    except Exception:  # of whatever lost its other end
        _watches[0].confirm()
        raise


def check_equal(values: Mapping[str, str]) -> None:
    """Raises a `UserError`, as `together` does, unless every process gives the same values.

    Args:
      values: a few short ones, by what they are of.
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
    """The first process's value, in all of them; a barrier."""
    return bool(_tell("yes" if value else "")[0])


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
    """Where the port is taken, JAX would say so, or now and then crash."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    port = int(coordinator.rpartition(":")[2])
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=both).close()
    except OSError as error:
        reason = os.strerror(error.errno)
        raise UserError(
            f"--coordinator={coordinator}: process 0 cannot listen at its port ({reason}): choose another"
        ) from None


def _join(others: str, patience: int, **arguments: Any) -> None:
    """`jax.distributed.initialize`, and an end in one line where it would abort. `others`: for that line."""
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
    """Tasks that `srun` started together with this one; 1 in a batch script, or outside of Slurm."""
    if not all(name in environ for name in _SLURM):
        return 1
    tasks = environ["SLURM_NTASKS"]  # in an interactive shell it is the allocation's, the shell itself one task
    return min(int(tasks), int(environ.get("SLURM_STEP_NUM_TASKS", tasks)))


def _slurm_gpus(environ: Mapping[str, str]) -> list[int] | None:
    """The GPUs of this task, counted among those that it sees; None for JAX's choice: one, numbered as the task is.

    That choice would leave GPUs idle where a node has one task, and name one that is not there where a task sees no
    more than its own (--gpus-per-task).
    """
    seen = [gpu for gpu in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    one_a_node = environ.get("SLURM_STEP_NUM_NODES") == environ.get("SLURM_STEP_NUM_TASKS", environ["SLURM_NTASKS"])
    return list(range(len(seen))) if seen and (one_a_node or len(seen) == 1) else None


def _on_tpu_pod(environ: Mapping[str, str]) -> bool:
    """Whether this is one of several hosts of TPUs, as JAX will find it.

    JAX has no public question for it, and `jax.distributed.initialize` fails where there is nothing to find. The
    metadata server is asked only on a TPU VM: notebooks with a TPU name their single host in the environment.
    """
    if not jax_internals.on_tpu_vm():
        return False
    hosts = environ.get("TPU_PROCESS_ADDRESSES", environ.get("TPU_WORKER_HOSTNAMES"))
    if hosts is not None:
        return "," in hosts or int(environ.get("MEGASCALE_NUM_SLICES", 1)) > 1
    return jax_internals.gce_tpu_hosts() > 1


def _tell(message: str) -> list[str]:
    """The messages of all processes, cut to what fits; a barrier."""
    if count() == 1:
        return [message]
    own = np.zeros(_MESSAGE, np.uint8)
    data = message.encode()[:_MESSAGE]
    own[: len(data)] = np.frombuffer(data, np.uint8)
    everyone = multihost_utils.process_allgather(own)  # [processes, bytes]
    return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in everyone]
