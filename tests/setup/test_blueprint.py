"""Settings that a blueprint chooses, and sizes that do not divide over the mesh."""

from __future__ import annotations

import jax
import pytest

from gadjax.errors import UserError
from gadjax.planning import run_programs as planned
from gadjax.planning.planner import checked, make_blueprint
from gadjax.setup.blueprint import make_method, updates_per_step

pytestmark = pytest.mark.quick


def blueprint(tiny_config, fields=None, devices=8):
    return make_blueprint(checked(tiny_config({"data.heldout": ""} | (fields or {}))), jax.devices()[:devices])


@pytest.mark.parametrize(
    ("tokens", "devices", "generator", "discriminator"),
    [
        (10**6, 1, 1, 1),
        (64 * 4, 1, 2, 4),  # four rows of two samples each, three of two samples and the teacher's answer
        (72, 8, 1, 1),
        (1, 8, 2, 4),  # too few for a group: each row has one sequence, and each device at least one row
        (1, 1, 8, 8),
    ],
)
def test_micro_batches_fit_the_tokens(tiny_config, tokens, devices, generator, discriminator):
    """A sequence has 48 + 8 tokens, a group 8 more for each further response. A step has 8 prompts, 2 samples each."""
    found = make_method(blueprint(tiny_config, {"micro_batches.tokens": tokens}, devices), "gad")
    assert (found.generator_micro_batches, found.discriminator_micro_batches) == (generator, discriminator)


def test_micro_batches_that_are_given(tiny_config):
    fields = {"micro_batches.generator": 4, "micro_batches.discriminator": 8}
    found = make_method(blueprint(tiny_config, fields), "gad")
    assert (found.generator_micro_batches, found.discriminator_micro_batches) == (4, 8)


def test_a_stage_without_samples_has_larger_slices(tiny_config):
    found = make_method(blueprint(tiny_config, {"micro_batches.tokens": 56 * 4}, 1), "warmup")
    assert (found.generator_micro_batches, found.discriminator_micro_batches) == (2, 4)


def test_updates_of_a_stage(tiny_config):
    """What a schedule of learning rates spans: each network's own updates."""
    fields = {"discriminator.updates_per_step": 3, "gad.ppo_minibatches": 2, "gad.ppo_epochs": 4}
    lengths = {"seqkd.steps": 5, "warmup.steps": 20, "gad.steps": 0, "warmup.discriminator_only_steps": 8}
    config = checked(tiny_config({"data.heldout": "", "stages": ("seqkd", "warmup", "gad")} | fields | lengths))
    assert updates_per_step(config, "seqkd") == {"generator": (1, 5), "discriminator": (1, 5)}
    assert updates_per_step(config, "warmup") == {"generator": (1, 12), "discriminator": (3, 20)}
    assert updates_per_step(config, "gad") == {"generator": (8, 0), "discriminator": (3, 0)}


@pytest.mark.parametrize(
    "fields",
    [
        {"warmup.train_generator": False, "warmup.steps": 8},  # the generator waits for longer than the stage
        {"warmup.train_discriminator": False, "warmup.steps": 12},
        {"warmup.steps": 22},
    ],
)
def test_schedules_of_warmup(tiny_config, fields):
    """Where only one network is trained, steps for the discriminator alone are of no effect."""
    rates = {"warmup.schedule": "cosine", "warmup.rise_steps": 7, "warmup.discriminator_only_steps": 10}
    method = make_method(blueprint(tiny_config, rates | fields, 1), "warmup")
    assert method.generator_optimizer is not None


@pytest.mark.parametrize("fields", [{}, {"row_length": 320}, {"gad.ppo_minibatches": 4}, {"gad.sft_coefficient": 1.0}])
@pytest.mark.parametrize("tokens", [400, 1000])
def test_no_micro_batch_has_more_tokens(tiny_config, fields, tokens):
    """The limit holds for every kind of rows, if all sequences have their full length."""
    made = blueprint(tiny_config, fields | {"micro_batches.tokens": tokens}, 1)
    method = make_method(made, "gad")
    found = {
        "teacher": planned.teacher_rows(made, method),
        "policy": planned.policy_rows(made, method)[0],
        "group": planned.group_rows(made, method)[0],
    }
    for kind, rows in found.items():
        held = rows.tokens.shape[-2] * rows.tokens.shape[-1]
        assert held <= tokens, kind


def test_rows_of_whole_groups(tiny_config):
    """Rows hold whole groups if the attention skips masked blocks and a micro-batch may have so many tokens."""
    made = blueprint(tiny_config, {}, 1)
    assert [made.row_length(group) for group in (1, 2, 3)] == [56, 64, 72]
    assert all(made.row_shape(group).whole_groups for group in (1, 2, 3))
    made = blueprint(tiny_config, {"micro_batches.tokens": 70}, 1)
    assert [made.row_length(group) for group in (1, 2, 3)] == [56, 64, 56]
    assert [made.row_shape(group).whole_groups for group in (1, 2, 3)] == [True, True, False]
    given = blueprint(tiny_config, {"row_length": 70}, 1)
    assert [given.row_length(group) for group in (1, 2, 3)] == [70, 70, 70]
    assert [given.row_shape(group).whole_groups for group in (1, 2, 3)] == [True, True, False]


@pytest.mark.parametrize("slots", [0, 2, 6, 1024])
def test_any_number_of_slots_that_devices_can_share(tiny_config, slots):
    assert make_method(blueprint(tiny_config, {"rollout.slots": slots}, 2), "gad").slots == slots


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 12}, r"batch_size 12 is not divisible by the 8 parts.*use a multiple of 8"),
        ({"rollout.slots": 6}, r"rollout.slots 6 is not divisible by the 8 parts .*: use a multiple of 8, or 0"),
        (
            {"mesh.fsdp": 1, "mesh.tensor": 8},
            r"attention heads, which config.mesh.tensor 8 does not divide: use one",
        ),
        ({"mesh.decode_tensor": 3}, r"config.mesh.decode_tensor 3 does not fit.*use one of 1, 2, 4, 8, or 0"),
        ({"mesh.decode_tensor": 8}, r"attention heads, which config.mesh.decode_tensor 8 does not divide"),
    ],
)
def test_sizes_that_do_not_divide(tiny_config, fields, message):
    with pytest.raises(UserError, match=message):
        blueprint(tiny_config, fields)
