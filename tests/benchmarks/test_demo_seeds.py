"""The arms of the demo's comparison make equal numbers of updates at the stated rates, with and without GAD."""

from __future__ import annotations

from benchmarks.demo_seeds import arms
from gadjax.config.check import resolve


def generator_updates(config) -> int:
    """The generator's updates in all stages."""
    total = 0
    for stage in config.stages:
        section = config[stage]
        if section.get("train_generator", True):
            total += section.steps - (section.discriminator_only_steps if stage == "warmup" else 0)
    return total


def test_arms_make_equal_updates():
    configs = {name: resolve(config) for name, config in arms(3).items()}
    assert {config.seed for config in configs.values()} == {3}
    assert len({generator_updates(config) for config in configs.values()}) == 1
    assert all(config.seqkd.steps >= configs["gad"].seqkd.steps for config in configs.values())
    assert configs["control"].warmup.generator_learning_rate == configs["gad"].gad.generator_learning_rate
    assert not configs["control"].warmup.train_discriminator
