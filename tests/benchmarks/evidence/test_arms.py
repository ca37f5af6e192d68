"""The arms of a suite make equal numbers of generator updates from one start, and each is a config that can run."""

from __future__ import annotations

import pathlib

import pytest

from benchmarks.evidence import answers, demo, known, paper
from benchmarks.evidence.arms import CORE, OPTIONS, Game, Scene, make_arm
from benchmarks.evidence.networks import Data, Fit
from benchmarks.evidence.runs import Cost
from benchmarks.evidence.suite import Options
from gadjax.config.check import resolve
from gadjax.errors import UserError

pytestmark = pytest.mark.quick
GAME = Game(updates=60, every=20, prompts=16, samples=4, discriminator_steps=40)


@pytest.fixture
def scene(monkeypatch) -> Scene:
    monkeypatch.setattr(answers, "draw", lambda *_, **__: Cost(1.0, 7))
    monkeypatch.setattr(answers, "prompts_of", lambda path: [])
    folder = pathlib.Path("/suite")
    data = Data(folder / "train.parquet", folder / "heldout.parquet", 64)
    fit = Fit(100, 3e-3, batch=64, finish_steps=50, finish_rate=1e-3)
    start, phi, teacher = folder / "student-3", folder / "phi-0", folder / "teacher"
    return Scene(folder, 3, start, fit, data, GAME, phi, Cost(5.0, 0), teacher)


def generator_updates(config) -> int:
    """The generator's updates in all stages."""
    total = 0
    for stage in config.stages:
        section = config[stage]
        if section.get("train_generator", True):
            waits = stage == "warmup" and section.train_discriminator
            total += section.steps - (section.discriminator_only_steps if waits else 0)
    return total


@pytest.mark.parametrize("name", [*CORE, *OPTIONS, "bt-in-seqkd", "gad"])
def test_an_arm_makes_the_updates_at_which_it_is_measured(scene, name):
    arm = make_arm(name, scene, demo.Demo.own)
    config = resolve(arm.config)
    assert arm.name == name and config.seed == 3 and config.student == "/suite/student-3" and not config.random_init
    assert generator_updates(config) == GAME.updates == max(arm.points) and 0 in arm.points
    # Every point is the start itself or a checkpoint: a stage saves each `every` steps of its own, and its end.
    saved, total = {0}, 0
    for stage in config.stages:
        steps = config[stage].steps
        saved |= {total + step for step in (*range(0, steps, config.checkpoint.every), steps)}
        total += steps
    assert saved >= set(arm.points.values()) and max(arm.points.values()) == total
    assert config.checkpoint.keep >= len(saved)


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_is_compared_with_the_arm_that_it_changes(scene, name):
    arm = make_arm(name, scene)
    other = make_arm(OPTIONS[name][0], scene)
    assert arm.changes == other.name and arm.points == other.points
    assert arm.config.to_dict() != other.config.to_dict()


def test_every_arm_has_rivals_and_none_is_its_own(scene, tmp_path):
    suite = known.Known(Options(tmp_path))
    rivals = {name: suite.rivals_of(make_arm(name, scene)) for name in (*CORE, *OPTIONS)}
    assert rivals.pop("control") == [] and rivals.pop("seqkd") == ["control"]
    for name, found in rivals.items():
        assert found == ([OPTIONS[name][0]] if name in OPTIONS else []) + ["control", "seqkd"]
    of_paper = paper.Paper(Options(tmp_path))
    assert of_paper.rivals_of(make_arm("ce", scene, of_paper.own)) == ["full", "more-seqkd"]
    assert not set(of_paper.rivals) - set(of_paper.arms)


def test_arms_that_are_not_there(scene):
    with pytest.raises(UserError, match="--arms: there is no arm gan: choose among seqkd, control"):
        make_arm("gan", scene)


def test_what_phi_took_is_beside_every_arm_that_uses_it(scene):
    names = ("control", "gad-paper", "paper-from-generator", "seqkd-on-phi")
    made = {name: make_arm(name, scene) for name in names}
    cost = {name: arm.preparation + arm.make() for name, arm in made.items()}
    assert [c.seconds for c in cost.values()] == [0, 5, 0, 6] and cost["seqkd-on-phi"].sampled_tokens == 7


def test_answers_of_phi_are_drawn_when_the_arm_runs_and_not_when_it_is_looked_at(scene, monkeypatch):
    drawn = []
    monkeypatch.setattr(answers, "draw", lambda *given, **_: drawn.append(given) or Cost(1.0, 7))
    arm = make_arm("seqkd-on-phi", scene)
    assert not drawn
    arm.make()
    ((model, _, count, limit, seed, out),) = drawn
    assert (model, count, limit, seed) == (scene.phi, GAME.updates * GAME.prompts * GAME.samples, 64, 3)
    assert str(out) == arm.config.data.train


def test_seqkd_on_phi_sees_as_many_answers_as_the_game_samples(scene):
    config = make_arm("seqkd-on-phi", scene).config
    assert config.batch_size * config.seqkd.steps == GAME.updates * GAME.prompts * GAME.samples
    assert config.data.train == "/suite/phi-answers-3.parquet"


def test_the_papers_arms_are_its_ablations(scene, tmp_path):
    suite = paper.Paper(Options(tmp_path))
    configs = {name: resolve(make_arm(name, scene, suite.own).config) for name in suite.arms}
    updates = {name: generator_updates(config) for name, config in configs.items()}
    full = updates.pop("full")
    assert updates.pop("no-g-warmup") == full - suite.paper_sizes.warmup and set(updates.values()) == {full}
    assert configs["ce"].discriminator.loss == "ce" and not configs["frozen-d"].gad.train_discriminator
    assert not configs["no-d-warmup"].warmup.train_discriminator
