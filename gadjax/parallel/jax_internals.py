"""The only imports of `jax._src`: what gadjax needs and JAX has no public function for.

A newer JAX may move it. Then a `UserError` names the JAX versions that gadjax was tried with.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import jax

from gadjax.errors import UserError

TRIED = ("0.10.0", "0.10.2")  # versions of JAX: the lowest that is allowed, and the newest that was tried


def coordination_client() -> Any:
    """JAX's connection to the run's coordination service, whose barriers have a time limit."""
    return _module("jax._src.distributed", "global_state").global_state.client


def on_tpu_vm() -> bool:
    """Whether this machine is a TPU VM, as JAX found when it was imported."""
    return _module("jax._src.clusters.cloud_tpu_cluster", "running_in_cloud_tpu_vm").running_in_cloud_tpu_vm


def gce_tpu_hosts() -> int:
    """The number of hosts that the metadata server of a TPU VM on Compute Engine lists; 1 elsewhere."""
    cluster = _module("jax._src.clusters.cloud_tpu_cluster", "GceTpuCluster").GceTpuCluster
    return cluster.get_process_count() if cluster.is_env_present() else 1


def _module(name: str, attribute: str) -> ModuleType:
    """A private module of JAX that has this attribute."""
    try:
        module = importlib.import_module(name)
        getattr(module, attribute)
    except (ImportError, AttributeError):
        raise UserError(
            f"JAX {jax.__version__} has no {name}.{attribute}, which gadjax needs; gadjax was tried with JAX "
            f"{' and '.join(TRIED)}: install one of them, or change gadjax/parallel/jax_internals.py"
        ) from None
    return module
