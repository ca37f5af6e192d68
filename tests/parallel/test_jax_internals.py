"""The private parts of JAX that gadjax uses are where it looks for them."""

from __future__ import annotations

import pathlib
import re

import jax
import pytest

from gadjax.errors import UserError
from gadjax.parallel import jax_internals

pytestmark = pytest.mark.quick


def test_this_jax_has_the_doors():
    """If this fails, JAX has moved them: `jax_internals` names the versions that were tried."""
    found = f"JAX {jax.__version__}; gadjax was tried with {', '.join(jax_internals.TRIED)}"
    state = jax_internals._module("jax._src.distributed", "global_state").global_state
    assert hasattr(state, "client"), found
    assert isinstance(jax_internals.on_tpu_vm(), bool), found
    cluster = jax_internals._module("jax._src.clusters.cloud_tpu_cluster", "GceTpuCluster").GceTpuCluster
    assert callable(cluster.is_env_present) and callable(cluster.get_process_count), found


@pytest.mark.parametrize(("module", "attribute"), [("jax._src.distributed", "gone"), ("jax._src.gone", "client")])
def test_a_door_that_is_gone(module, attribute):
    message = rf"JAX \S+ has no {module}.{attribute}, which gadjax needs; .* 0.10.0 and \S+: install one of them"
    with pytest.raises(UserError, match=message):
        jax_internals._module(module, attribute)


def test_the_lowest_version_is_the_one_that_is_allowed(repo):
    allowed = re.search(r'"jax>=([0-9.]+)"', (repo / "pyproject.toml").read_text())[1]
    assert jax_internals.TRIED[0].removesuffix(".0") == allowed


def test_nothing_else_imports_what_jax_keeps_to_itself(repo):
    imports = re.compile(r"jax\._src")
    users = {path for path in (repo / "gadjax").rglob("*.py") if imports.search(path.read_text())}
    assert users == {pathlib.Path(jax_internals.__file__)}
