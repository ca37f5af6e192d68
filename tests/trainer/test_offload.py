"""What waits in host memory, and that waiting changes no number."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import pytest

from gadjax.train import run
from gadjax.trainer.offload import Offload, read_part
from gadjax.workdir.checkpoints import Checkpoints
from tests.runs import stop_before

FIELDS = {"stages": ("warmup", "gad"), "checkpoint.every": 1, "eval_every": 2}


def memories(state, parts):
    return {
        part: {leaf.sharding.memory_kind for leaf in jax.tree.leaves(read_part(state, part))}
        for part in parts
        if read_part(state, part) is not None
    }


@pytest.mark.usefixtures("quick_compile", "shared_programs")
@pytest.mark.parametrize("networks", [False, True])
@pytest.mark.parametrize("optimizer", [False, True])
def test_each_phase_has_what_it_uses_and_no_more(decoder_state, optimizer, networks):
    offload = Offload(optimizer, networks)
    state, parts = decoder_state, [f"{n}.{f}" for n in ("generator", "discriminator") for f in ("params", "opt_state")]
    used = {
        "rollout": {"generator.params"},
        "discriminator": {"discriminator.params", "discriminator.opt_state"},
        "reference": {"reference"},
        "generator": {"generator.params", "generator.opt_state"},
        "measure": {"generator.params", "discriminator.params"},
    }
    for phase, needed in used.items():
        before, state = state, offload.arrange(state, phase)
        assert_gone(before, state)
        for part, found in memories(state, [*parts, "reference"]).items():
            waits = part not in needed and (optimizer if part.endswith("opt_state") else networks)
            assert found == {"pinned_host" if waits else "device"}, (phase, part)


def assert_gone(before, after):
    """Whoever still holds the state as it was holds none of the memory that was left."""
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert new is old or old.is_deleted()
        assert not new.is_deleted()


@pytest.fixture
def decoder_state(tiny_config):
    from gadjax.distill import state as states
    from gadjax.distill.state import GadState
    from gadjax.setup.blueprint import make_method
    from gadjax.setup.initial import initial_discriminator, initial_generator
    from gadjax.setup.prepare import prepare_run

    setup = prepare_run(tiny_config())
    method, generator = make_method(setup, "gad"), initial_generator(setup)
    return GadState(
        generator=states.create(generator, method.generator_optimizer),
        discriminator=states.create(initial_discriminator(setup, generator), method.discriminator_optimizer),
        reference=jax.tree.map(jnp.copy, generator),
    )


@pytest.mark.usefixtures("quick_compile", "one_device", "shared_programs")
def test_a_run_is_the_same(tiny_config, tmp_path):
    """Metrics and held-out figures alike, and it continues from its checkpoints, parts in their places."""
    fields = FIELDS | {"gad.steps": 3}
    run(tiny_config(fields), tmp_path / "plain")
    offloaded = tiny_config(fields | {"offload.optimizer": True, "offload.networks": True})
    assert stop_before(offloaded, tmp_path / "offloaded", 4)[-1] == 4
    run(offloaded, tmp_path / "offloaded")
    assert lines(tmp_path / "offloaded") == lines(tmp_path / "plain")
    assert Checkpoints(tmp_path / "offloaded").steps()[-1] == 5


def lines(workdir):
    """The run's metrics without its times."""
    timed = "seconds", "speed"
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith(timed)} for line in found]
