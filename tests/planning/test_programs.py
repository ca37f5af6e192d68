"""The plan compiles what the trainer runs: the same jitted functions, given the same shapes and layouts."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from gadjax.planning.programs import bytes_per_device, full_batch, run_programs
from gadjax.trainer.loop import Run
from gadjax.trainer.programs import Programs
from gadjax.trainer.setup import prepare_run

NAMES = {
    "weights for sampling": "decoding_params",
    "rollout": "sample_batch",
    "discriminator update": "update_discriminator",
    "cross-entropy update": "update_supervised",
    "reference": "reference_logprobs",
    "policy update": "update_policy",
}
FIELDS = {
    "stages": ("seqkd", "warmup", "gad"),
    "mesh.data": 2,
    "mesh.fsdp": 2,
    "mesh.tensor": 2,
    "mesh.decode_tensor": 4,
    "rollout.slots": 8,
    "micro_batches.tokens": 56,
    "remat": "full",
    "discriminator.replay_size": 16,
    "gad.sft_coefficient": 0.5,
    "gad.ppo_minibatches": 2,
    "data.heldout": "",
}


def describe(leaf):
    """Type and shape; for what has a layout, also a device's part of it."""
    text = f"{leaf.dtype}{list(leaf.shape)}"
    sharding = getattr(leaf, "sharding", None)
    return text if sharding is None else f"{text} in {list(sharding.shard_shape(leaf.shape))}"


def same(one, other):
    """Small arrays come from the host, where they have no layout yet."""
    if " in " not in one or " in " not in other:
        one, other = one.partition(" in ")[0], other.partition(" in ")[0]
    return one == other


@pytest.fixture
def recorded(monkeypatch, quick_compile, all_devices):
    """What each program of a run was given at its last call."""
    seen: dict[str, Any] = {}
    make = Programs.__init__

    def watched(name, function):
        def call(*arguments, **keywords):
            seen[name] = jax.tree.map(describe, (arguments, keywords.get("base")))
            return function(*arguments, **keywords)

        return call

    def init(self, method, mesh):
        make(self, method, mesh)
        for name in set(NAMES.values()) & vars(self).keys():
            setattr(self, name, watched(name, getattr(self, name)))

    monkeypatch.setattr(Programs, "__init__", init)
    return seen


def test_arguments_are_the_trainers(recorded, tiny_config, tmp_path):
    """A run on eight devices whose data is as long as it may be, step for step against the plan's shapes."""
    from gadjax.progress import RunProgress

    setup = prepare_run(tiny_config(FIELDS))
    with RunProgress(enabled=False) as progress:
        run = Run(setup, tmp_path, progress)
        longest(run, setup)
        run.train()
    trained = dict(recorded)
    planned = list(run_programs(setup))
    assert [program.name for program in planned] == list(NAMES)
    for program in planned:
        given = [describe(leaf) for leaf in jax.tree.leaves(program.arguments)]
        pairs = list(zip(given, jax.tree.leaves(trained[NAMES[program.name]]), strict=True))
        assert not [pair for pair in pairs if not same(*pair)], program.name


def longest(run, setup):
    """Every prompt and answer of the run's batches becomes as long as the data has them, and no sample ends early."""
    full = full_batch(setup)

    def batches(stage):
        while True:
            yield {name: value.copy() for name, value in full.items()}

    run._batches = batches


def test_bytes_are_those_of_the_largest_part(tiny_config, all_devices):
    setup = prepare_run(tiny_config({"mesh.fsdp": 8}))
    (program,) = [program for program in run_programs(setup) if program.name == "policy update"]
    state = program.arguments[0]
    kernel = state.params["layers"]["mlp"]["up"]["kernel"]
    assert bytes_per_device(kernel) == kernel.size * 4 // 8
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    whole = sum(int(np.prod(leaf.shape)) * 4 for leaf in moments)
    assert whole // 8 <= bytes_per_device(moments) < whole // 4
