"""What a user adds to a run in Python: a reward, a loss for the discriminator, callbacks, and values of their own."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

import gadjax
from gadjax.distill import losses
from gadjax.errors import Stopped, UserError
from gadjax.metrics import read_metrics
from tests.runs import assert_same_run

pytestmark = pytest.mark.usefixtures("one_device", "quick_compile", "shared_programs")
GAD = {"stages": ("gad",), "gad.steps": 2, "optimizer.weight_decay": 0.0, "gad.kl_coefficient": 0.0, "data.heldout": ""}

LIKELIHOOD = {"stages": ("seqkd", "gad"), "discriminator.kind": "likelihood", "seqkd.train_discriminator": True}


@pytest.fixture(scope="module")
def plain(tiny_config, tmp_path_factory):
    """The config of a run with nothing added, and its workdir."""
    config, workdir = tiny_config(GAD), tmp_path_factory.mktemp("plain")
    gadjax.train(config, workdir)
    return config, workdir


def weights(workdir, network="generator"):
    return (workdir / "export" / network / "model.safetensors").read_bytes()


class TestReward:
    def test_the_discriminator_s_own_scores_change_nothing(self, plain, tmp_path):
        config, workdir = plain
        asked = []

        def same(chats, answers, scores):
            asked.append((chats, answers))
            return scores

        gadjax.train(config, tmp_path / "run", reward=same)
        samples = config.batch_size * config.rollout.num_samples
        for chats, answers in asked:
            assert len(chats) == len(answers) == samples
            assert all(chat[-1]["role"] == "user" for chat in chats)
            assert chats[0] == chats[config.rollout.num_samples - 1] != chats[-1]
        assert weights(tmp_path / "run") == weights(workdir)
        own, other = (read_metrics(path / "metrics.jsonl") for path in (tmp_path / "run", workdir))
        for name in ("reward/mean", "reward/std", "reward/length_slope"):
            np.testing.assert_allclose([row[name] for row in own], [row[name] for row in other], rtol=1e-5)
        assert all("seconds/reward" in row for row in own)

    def test_equal_rewards_teach_nothing(self, plain, tmp_path):
        config, workdir = plain
        gadjax.train(config, tmp_path / "run", reward=lambda chats, answers, scores: [3.0] * len(answers))
        row = read_metrics(tmp_path / "run" / "metrics.jsonl")[0]
        assert row["reward/mean"] == 3.0 and row["reward/std"] == 0.0 and row["generator/grad_norm"] == 0.0
        assert read_metrics(workdir / "metrics.jsonl")[0]["generator/grad_norm"] > 0

    @pytest.mark.parametrize(
        "returned, message",
        [
            ([1.0], r"reward returned an array of shape \(1,\) for \d+ answers"),
            ("good", "reward returned str: it must return one number for each answer"),
            (None, "reward returned an array of shape"),
            ("nan", "reward returned nan for the answer"),
        ],
    )
    def test_something_else_than_numbers(self, plain, tmp_path, returned, message):
        def reward(chats, answers, scores):
            return np.full(len(answers), np.nan) if returned == "nan" else returned

        with pytest.raises(UserError, match=message):
            gadjax.train(plain[0], tmp_path / "run", reward=reward)

    @pytest.mark.parametrize(
        "fields, message",
        [
            ({"stages": ("seqkd",)}, "reward is used in stage gad"),
            ({"gad.credit": "token", "gad.whitening": "batch"}, "config.gad.credit is token: set it to sequence"),
            ({"gad.reward": "bounded"}, "config.gad.reward is bounded"),
            ({"gad.demonstrations": 0.5, "gad.demonstration_reward": 0.0}, "set config.gad.demonstration_reward"),
            (LIKELIHOOD, "config.discriminator.kind is likelihood"),
        ],
    )
    def test_a_config_that_has_no_place_for_it(self, tiny_config, tmp_path, fields, message):
        with pytest.raises(UserError, match=message):
            gadjax.train(tiny_config(GAD | fields), tmp_path / "run", reward=lambda *_: [])
        assert not (tmp_path / "run").exists()


class TestDiscriminatorLoss:
    def test_the_paper_s_loss_changes_nothing(self, plain, tmp_path):
        config, workdir = plain
        gadjax.train(config, tmp_path / "run", discriminator_loss=losses.bradley_terry)
        assert_same_run(tmp_path / "run", workdir)

    def test_another_loss_is_the_one_that_is_minimised(self, plain, tmp_path):
        config, workdir = plain

        def hinge(teacher, student):
            return jnp.maximum(0.0, 1.0 - (teacher[:, None] - student))

        gadjax.train(config, tmp_path / "run", discriminator_loss=hinge)
        first = read_metrics(tmp_path / "run" / "metrics.jsonl")[0]
        margin = read_metrics(workdir / "metrics.jsonl")[0]["discriminator/margin"]
        assert first["discriminator/margin"] == margin  # the same scores, before any update
        assert first["discriminator/loss"] == pytest.approx(1.0 - margin, rel=1e-5)  # no pair is told apart by 1 yet
        assert weights(tmp_path / "run", "discriminator") != weights(workdir, "discriminator")

    @pytest.mark.parametrize(
        "loss", [lambda teacher, student: teacher, lambda teacher, student: 1.0 * (student > 0).sum()]
    )
    def test_a_loss_that_gives_no_number_a_pair(self, plain, tmp_path, loss):
        with pytest.raises(UserError, match=r"must return a float for each pair, \[2, 3\]"):
            gadjax.train(plain[0], tmp_path / "run", discriminator_loss=loss)

    def test_a_loss_that_nothing_uses(self, tiny_config, tmp_path):
        with pytest.raises(UserError, match="no stage trains a discriminator on pairs"):
            config = tiny_config({"stages": ("seqkd",)})
            gadjax.train(config, tmp_path / "run", discriminator_loss=losses.bradley_terry)

    def test_a_run_goes_on_with_the_same_functions_only(self, plain, tiny_config, tmp_path):
        def hinge(teacher, student):
            return jnp.maximum(0.0, 1.0 - (teacher[:, None] - student))

        gadjax.train(tiny_config(GAD | {"gad.steps": 1}), tmp_path, discriminator_loss=hinge)
        with pytest.raises(UserError, match=r"discriminator_loss \(in Python\): '.*hinge' → None"):
            gadjax.train(plain[0], tmp_path)
        gadjax.train(plain[0], tmp_path, discriminator_loss=hinge)
        assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]


class TestCallbacks:
    def test_are_told_of_each_step(self, tiny_config, tmp_path):
        fields = {"stages": ("seqkd", "gad"), "seqkd.steps": 2, "gad.steps": 1, "eval_every": 2}
        told, order = [], []
        gadjax.train(tiny_config(fields), tmp_path, callbacks=[told.append, lambda done: order.append(len(told))])
        assert [(done.stage, done.step, done.stage_step, done.stage_steps) for done in told] == [
            ("seqkd", 1, 1, 2),
            ("seqkd", 2, 2, 2),
            ("gad", 3, 1, 1),
        ]
        assert order == [1, 2, 3]
        logged = [row for row in read_metrics(tmp_path / "metrics.jsonl") if row["kind"] == "train"]
        assert [done.metrics["generator/loss"] for done in told] == [row["generator/loss"] for row in logged]
        assert [bool(done.heldout) for done in told] == [False, True, True] and "nll" in told[1].heldout

    def test_one_ends_the_run_which_goes_on_later(self, plain, tmp_path):
        config, workdir = plain
        with pytest.raises(Stopped, match="saved at step 1"):
            gadjax.train(config, tmp_path, callbacks=[lambda done: done.stop()])
        gadjax.train(config, tmp_path)
        assert_same_run(tmp_path, workdir)

    def test_its_error_is_the_user_s(self, plain, tmp_path):
        with pytest.raises(ZeroDivisionError):
            gadjax.train(plain[0], tmp_path, callbacks=[lambda done: 1 / 0])

    def test_a_function_without_a_list(self, plain, tmp_path):
        with pytest.raises(UserError, match=r"callbacks is a function: give a list"):
            gadjax.train(plain[0], tmp_path, callbacks=print)

    def test_something_that_is_no_function(self, plain, tmp_path):
        with pytest.raises(UserError, match=r"callbacks\[1\] is 3: it must be a function"):
            gadjax.train(plain[0], tmp_path, callbacks=[print, 3])


def test_values_of_the_user_s_own_pass_through(tiny_config, tmp_path):
    config = tiny_config(GAD | {"gad.steps": 1})
    with config.unlocked():
        config.user.bonus, config.user.words = 0.5, ("fox", "snow")
    gadjax.train(config, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["user"] == {"bonus": 0.5, "words": ["fox", "snow"]}
    assert gadjax.read_run(tmp_path).config["user"]["bonus"] == 0.5


def test_values_that_json_cannot_hold(tiny_config, tmp_path):
    config = tiny_config(GAD)
    with config.unlocked():
        config.user.function = print
    with pytest.raises(UserError, match=r"config\.user cannot be written as JSON"):
        gadjax.train(config, tmp_path / "run")
