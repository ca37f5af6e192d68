"""The plan compiles what the trainer runs: the same jitted functions, given the same shapes and layouts."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from gadjax.distill import rows
from gadjax.planning.compiler import Compiler
from gadjax.planning.planner import checked, make_blueprint, make_plan
from gadjax.planning.program import bytes_per_device
from gadjax.planning.run_programs import full_batch, run_programs
from gadjax.planning.targets import parse_topology
from gadjax.rollout.sampler import Sampling
from gadjax.setup.prepare import prepare_run
from gadjax.trainer.loop import TrainingRun
from gadjax.trainer.programs import HeldOutPrograms, Programs

TARGET = parse_topology("cpu:8")
NAMES = {
    "weights for sampling": "decoding_params",
    "rollout": "sample_batch",
    "discriminator update": "update_discriminator",
    "cross-entropy update": "update_supervised",
    "reference": "reference_logprobs",
    "policy update": "update_policy",
}
HELDOUT_NAMES = {
    "held-out likelihoods": "likelihoods",
    "held-out weights for sampling": "decoding_params of figures",
    "held-out answers": "sample at 0.0",
    "held-out scores": "scores",
    "two-sample answers": "sample at 1.0",
    "two-sample update": "update",
    "two-sample scores": "score",
}
LIKELIHOOD_NAMES = {
    "weights for sampling": "decoding_params",
    "rollout": "sample_batch",
    "baseline of the discriminator": "baseline_logprobs",
    "discriminator update": "update_discriminator",
    "cross-entropy update": "update_supervised",
    "discriminator's cross-entropy update": "teach_discriminator",
    "reference": "reference_logprobs",
    "policy update": "update_policy",
}
SODA_NAMES = {
    "weights for sampling": "decoding_params",
    "rollout": "sample_batch",
    "baseline of the preferences": "baseline_logprobs",
    "preference update": "update_discriminator",
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
    "evaluation.prompts": 7,
    "evaluation.two_sample_folds": 2,
    "evaluation.two_sample_epochs": 2,
}


# Runs that have programs of their own: their fields beside `FIELDS`, and the programs of their steps.
RUNS = {
    "paper": ({}, NAMES),
    "likelihood": (
        {
            "stages": ("seqkd", "gad"),
            "discriminator.kind": "likelihood",
            "discriminator.init": "generator",
            "seqkd.train_discriminator": True,
            "seqkd.discriminator_learning_rate": 1e-3,
            "gad.credit": "token",
            "gad.demonstrations": 0.5,
            "evaluation.two_sample_folds": 0,
        },
        LIKELIHOOD_NAMES,
    ),
    "soda": ({"stages": ("soda",), "evaluation.two_sample_folds": 0}, SODA_NAMES),
}


def describe(leaf):
    """Type and shape of an array, and the shape of a device's part if it has a layout."""
    text = f"{leaf.dtype}{list(leaf.shape)}"
    sharding = getattr(leaf, "sharding", None)
    return text if sharding is None else f"{text} in {list(sharding.shard_shape(leaf.shape))}"


def same(one, other):
    """Whether two descriptions agree. Small arrays come from the host, and have no layout yet."""
    if " in " not in one or " in " not in other:
        one, other = one.partition(" in ")[0], other.partition(" in ")[0]
    return one == other


@pytest.fixture
def recorded(monkeypatch, quick_compile, all_devices):
    """What each program of a run was given at its last call."""
    seen: dict[str, Any] = {}
    make, make_heldout = Programs.__init__, HeldOutPrograms.__init__

    def watched(name, function):
        def call(*arguments, **keywords):
            temperature = "".join(f" at {given.temperature}" for given in arguments if isinstance(given, Sampling))
            arrays = [leaf for leaf in jax.tree.leaves((arguments, keywords.get("base"))) if hasattr(leaf, "dtype")]
            seen[name + temperature] = [describe(leaf) for leaf in arrays]
            return function(*arguments, **keywords)

        call.lower = getattr(function, "lower", None)
        return call

    def init(self, method, mesh):
        make(self, method, mesh)
        functions = {function for _, names in RUNS.values() for function in names.values()}
        for name in functions & vars(self).keys():
            setattr(self, name, watched(name, getattr(self, name)))

    def init_heldout(self, blueprint):
        make_heldout(self, blueprint)
        self.decoding_params = watched("decoding_params of figures", self.decoding_params)
        for owner, names in ((self, ("likelihoods", "scores")), (self.engine, ("sample",))):
            for name in names:
                setattr(owner, name, watched(name, getattr(owner, name)))
        for name in ("update", "score"):
            setattr(self.classifier, name, watched(name, getattr(self.classifier, name)))

    monkeypatch.setattr(Programs, "__init__", init)
    monkeypatch.setattr(HeldOutPrograms, "__init__", init_heldout)
    return seen


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        pytest.param(*RUNS["paper"], id="paper"),
        pytest.param(*RUNS["likelihood"], id="likelihood", marks=pytest.mark.slow),  # half a minute: it compiles most
        pytest.param(*RUNS["soda"], id="soda"),
    ],
)
def test_arguments_are_the_trainers(recorded, tiny_config, small_student, tmp_path, fields, names):
    """The arrays of a run on eight devices with data of the largest lengths have the plan's shapes and layouts."""
    from gadjax.progress import RunProgress

    config = tiny_config(FIELDS | {"student": str(small_student)} | fields)
    setup = dataclasses.replace(prepare_run(config), eos_ids=(-1,))  # no sample ends early
    with RunProgress(enabled=False) as progress:
        run = TrainingRun(setup, tmp_path, progress)
        longest(run, setup)
        run.train()
    trained = dict(recorded)
    planned = list(run_programs(setup))
    without = () if setup.config.evaluation.two_sample_folds else ("two-sample",)
    without += () if "gad" in setup.config.stages else ("held-out scores",)
    names = names | {name: of for name, of in HELDOUT_NAMES.items() if not (without and name.startswith(without))}
    assert [program.name for program in planned] == list(names)
    for program in planned:
        given = [describe(leaf) for leaf in jax.tree.leaves(program.arguments)]
        pairs = list(zip(given, trained[names[program.name]], strict=True))
        assert not [pair for pair in pairs if not same(*pair)], program.name


def longest(run, setup):
    """Gives all prompts and answers of the run, held-out ones included, their largest length."""
    full = full_batch(setup)

    def batches(stage):
        while True:
            yield {name: value.copy() for name, value in full.items()}

    run._batches = batches
    run.heldout.prompts = np.repeat(full["prompt"][:1], setup.heldout_prompts, axis=0)
    run.heldout.prompts[:, 0] = np.arange(setup.heldout_prompts)  # equal ones would share a fold
    run.heldout.teacher = [full["teacher"][0]] * setup.heldout_prompts


def test_bytes_are_those_of_the_largest_part(tiny_config, all_devices):
    setup = prepare_run(tiny_config({"mesh.fsdp": 8}))
    (program,) = [program for program in run_programs(setup) if program.name == "policy update"]
    state = program.arguments[0]
    kernel = state.params["layers"]["mlp"]["up"]["kernel"]
    assert bytes_per_device(kernel) == kernel.size * 4 // 8
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    whole = sum(int(np.prod(leaf.shape)) * 4 for leaf in moments)
    assert whole // 8 <= bytes_per_device(moments) < whole // 4


def test_what_a_program_never_reads_is_on_the_devices_too(tiny_config, all_devices):
    """A discriminator's update is given the base of all networks, and never reads its head for tokens."""
    config = checked(tiny_config({"lora.rank": 2, "random_init": False, "stages": ("warmup", "gad")}))
    blueprint = make_blueprint(config, jax.devices())
    (program,) = [program for program in run_programs(blueprint) if program.name == "discriminator update"]
    given = bytes_per_device(program.arguments)
    read = program.trace().lower().compile().memory_analysis().argument_size_in_bytes
    head = bytes_per_device(program.base["lm_head"])
    assert 0 < head <= given - read
    (compiled,) = Compiler(TARGET, jax.devices()).compile([program])
    assert compiled.program >= given


def test_a_plan_without_data_is_of_a_run_that_measures(tiny_config):
    for fields, measured in (({"data.train": "", "data.heldout": ""}, True), ({"data.heldout": ""}, False), ({}, True)):
        blueprint = make_blueprint(checked(tiny_config(fields)), jax.devices())
        assert (blueprint.heldout_prompts == 128) == measured and bool(blueprint.heldout_prompts) == measured
    many = checked(tiny_config({"evaluation.prompts": 0}))
    assert make_blueprint(many, jax.devices()).heldout_prompts >= 64


def test_rows_are_packed_once_and_only_where_they_are_needed(tiny_config, monkeypatch):
    """Rows are not packed for a program that was compiled before, nor again for its trace without remat."""
    packed = []
    pack = rows.teacher_rows
    monkeypatch.setattr(rows, "teacher_rows", lambda *given: (packed.append(1), pack(*given))[1])
    config, known = tiny_config({"stages": ("seqkd",), "data.heldout": ""}), {}
    first = make_plan(config, Compiler(TARGET, jax.devices()), known)
    assert len(packed) == 1
    again = make_plan(config, Compiler(TARGET, jax.devices()), known)
    assert len(packed) == 1 and again.programs == first.programs
