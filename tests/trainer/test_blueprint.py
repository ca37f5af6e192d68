"""Settings that choose themselves, and sizes that do not divide."""

from __future__ import annotations

import jax
import pytest

from gadjax.errors import UserError
from gadjax.planning.run import checked, make_blueprint
from gadjax.trainer.blueprint import make_method


def blueprint(tiny_config, fields=None, devices=8):
    return make_blueprint(checked(tiny_config({"data.heldout": ""} | (fields or {}))), jax.devices()[:devices])


@pytest.mark.parametrize(
    ("tokens", "devices", "generator", "discriminator"),
    [
        (10**6, 1, 1, 1),
        (56 * 8, 1, 2, 4),  # eight rows: of 16 samples, and of 24 sequences whose groups have three
        (56 * 2, 8, 1, 2),
        (1, 8, 2, 4),  # a row a device at least
        (1, 1, 8, 8),
    ],
)
def test_micro_batches_fit_the_tokens(tiny_config, tokens, devices, generator, discriminator):
    """Rows have 48 + 8 tokens; a step has 8 prompts, 2 samples each."""
    found = make_method(blueprint(tiny_config, {"micro_batches.tokens": tokens}, devices), "gad")
    assert (found.generator_micro_batches, found.discriminator_micro_batches) == (generator, discriminator)


def test_micro_batches_that_are_given(tiny_config):
    fields = {"micro_batches.generator": 4, "micro_batches.discriminator": 8}
    found = make_method(blueprint(tiny_config, fields), "gad")
    assert (found.generator_micro_batches, found.discriminator_micro_batches) == (4, 8)


def test_a_stage_without_samples_has_larger_slices(tiny_config):
    found = make_method(blueprint(tiny_config, {"micro_batches.tokens": 56 * 4}, 1), "warmup")
    assert (found.generator_micro_batches, found.discriminator_micro_batches) == (2, 8)


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
