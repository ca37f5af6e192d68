"""A run with adapters, from its config to its exports."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from gadjax.errors import UserError
from gadjax.models import layouts, lora
from gadjax.models.model import Model
from gadjax.models.weights import load_params, named_leaves, read_hf_config
from gadjax.parallel import mesh as meshes
from gadjax.setup.initial import initial_base, initial_discriminator, initial_generator
from gadjax.setup.prepare import prepare_run
from gadjax.train import run
from gadjax.trainer import stage_start
from gadjax.trainer.heldout import HeldOut
from gadjax.trainer.session import describe
from gadjax.trainer.stage_steps import StageSteps
from gadjax.workdir.checkpoints import Checkpoints
from gadjax.workdir.facts import network_model, read_workdir
from gadjax.workdir.resume import check_workdir
from tests.runs import stop_before, untimed

pytestmark = pytest.mark.usefixtures("quick_compile", "one_device", "shared_programs")

FIELDS = {
    "random_init": False,
    "lora.rank": 4,
    "lora.alpha": 8.0,
    "stages": ("seqkd", "warmup", "gad"),
    "seqkd.generator_learning_rate": 0.1,
    "warmup.generator_learning_rate": 0.1,
    "gad.kl_coefficient": 0.1,
    "checkpoint.every": 1,
    "checkpoint.keep": 10,
    "evaluation.two_sample_folds": 2,
    "evaluation.two_sample_epochs": 1,
}


@dataclasses.dataclass(frozen=True)
class Leaf:
    """What is left of an array."""

    identity: int
    size: int


@pytest.fixture(scope="module")
def weighty(student, add_weights, tmp_path_factory) -> pathlib.Path:
    """The student with weights."""
    return add_weights(shutil.copytree(student, tmp_path_factory.mktemp("weighty") / "student"))


@pytest.fixture(scope="module")
def adapted(tiny_config, weighty):
    """The config of a run with adapters; the argument's fields replace its own."""
    return lambda fields=None: tiny_config(FIELDS | {"student": str(weighty)} | (fields or {}))


@pytest.fixture(scope="module")
def finished(adapted, tmp_path_factory, one_device, quick_compile, shared_programs):
    """The run's workdir, its held-out figures, and the states that entered each step."""
    workdir, states, original = tmp_path_factory.mktemp("lora") / "run", [], StageSteps.run

    def remember(self, state, *args):
        states.append(jax.tree.map(lambda leaf: Leaf(id(leaf), leaf.nbytes), state))
        return original(self, state, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageSteps, "run", remember)
        figures = run(adapted(), workdir)
    return workdir, figures, states


def bytes_of(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_all_stages_learn(finished):
    workdir, figures, _ = finished
    train = [line for line in untimed(workdir) if line["kind"] == "train"]
    assert [line["stage"] for line in train] == ["seqkd", "seqkd", "warmup", "warmup", "gad", "gad"]
    assert train[4]["generator/kl"] == 0.0 < train[5]["generator/kl"], "gad begins at its reference, exactly"
    assert all(line["generator/sampler_gap"] < 1e-4 for line in train if "generator/sampler_gap" in line)
    assert figures["seqkd"]["nll"] < figures["before"]["nll"] - 0.01
    assert "two_sample" in figures["gad"]


def test_one_base_and_small_trees_on_it(finished, adapted, weighty):
    """The state holds the student once; what is trained, its moments and the reference add a few bytes."""
    *_, states = finished
    stored = sum(value.nbytes for value in safetensors.numpy.load_file(weighty / "model.safetensors").values())
    assert all(state.base == states[0].base for state in states), "the same arrays in every step of every stage"
    assert bytes_of(states[0].base) == stored
    last, model = states[-1], prepare_run(adapted()).generator
    own = sum(leaf.size for leaf in jax.tree.leaves(lora.trained(model.abstract_params()))) * 4
    head = (32 + 1) * 4
    assert bytes_of(last.generator.params) == bytes_of(last.reference) == own
    assert bytes_of(last.discriminator.params) == own + head
    everything = bytes_of(last)
    assert everything - stored == 3 * own + own + 3 * (own + head) + 2 * 4 * 4, "moments, and a few counters"


def test_what_is_trained_is_said(adapted):
    setup = prepare_run(adapted())
    trained = sum(leaf.size for leaf in jax.tree.leaves(initial_generator(setup)))
    assert f"parameters, of which {trained:,} are trained (LoRA), float32" in describe(setup)


def test_the_base_is_in_the_compute_dtype(adapted):
    setup = prepare_run(adapted({"dtype": "bfloat16"}))
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(initial_base(setup))} == {"bfloat16"}
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(initial_generator(setup))} == {"float32"}


def test_checkpoints_hold_no_base(finished):
    workdir, _, _ = finished
    tree = Checkpoints(workdir)
    names = {str(path) for path in (workdir / "checkpoints" / "6").rglob("*")}
    assert not any("embed" in name for name in names)
    config, facts = read_workdir(workdir)
    mesh = meshes.make_mesh(1, 1, 1)
    model = network_model(config, facts, "generator")
    params = tree.params(6, "generator", lora.trained(layouts.abstract_params(model, mesh)))
    assert {name.rpartition("/")[2] for name in named_leaves(params)} == {"lora_a", "lora_b"}


def test_measuring_holds_the_base_once(adapted):
    """On one device the weights that answers are sampled from are the base's own arrays, not copies."""
    setup = prepare_run(adapted())
    base = initial_base(setup)
    decoding = HeldOut(setup).programs.decoding_params(lora.join(base, initial_generator(setup)))
    ours, theirs = named_leaves(base), named_leaves(decoding)
    assert all(theirs[name] is leaf for name, leaf in ours.items())


def test_an_interrupted_run_is_the_uninterrupted_one(finished, adapted, tmp_path):
    """Stopped in the middle of gad, where there are all three networks."""
    workdir, _, _ = finished
    stop_before(adapted(), tmp_path / "run", 5, KeyboardInterrupt)
    run(adapted(), tmp_path / "run")
    assert untimed(tmp_path / "run") == untimed(workdir)
    for file in ("generator/model.safetensors", "discriminator/adapter/adapter_model.safetensors"):
        assert (tmp_path / "run" / "export" / file).read_bytes() == (workdir / "export" / file).read_bytes()


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_exports_are_merged_weights_and_adapters(finished, adapted, network):
    """The merged network computes what the run's own does; the numbers are those of the last checkpoint."""
    workdir, _, _ = finished
    config, facts = read_workdir(workdir)
    setup = prepare_run(adapted())
    model = network_model(config, facts, network)
    like = lora.trained(layouts.abstract_params(model, setup.mesh))
    whole = lora.join(initial_base(setup), Checkpoints(workdir).params(6, network, like))
    exported, _ = read_hf_config(workdir / "export" / network)
    plain = Model(exported, model.head)
    merged = load_params(workdir / "export" / network, exported, plain.abstract_params())
    tokens = np.random.default_rng(0).integers(0, 300, (2, 9)).astype(np.int32)
    fields = tokens, np.broadcast_to(np.arange(9), (2, 9)), np.ones_like(tokens)
    outputs = [
        (m.logits if network == "generator" else m.scores)(p, *fields) for m, p in ((model, whole), (plain, merged))
    ]
    np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-5)
    adapter = json.loads((workdir / "export" / network / "adapter" / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"], adapter["base_model_name_or_path"]) == (4, 8.0, config["student"])


def test_the_export_command_reads_the_student_anew(finished, command, tmp_path):
    workdir, _, _ = finished
    done = command("gadjax.export", f"--workdir={workdir}", f"--out={tmp_path / 'out'}")
    assert done.status == 0, done.err
    ours = {str(f.relative_to(tmp_path / "out")): f for f in (tmp_path / "out").rglob("*") if f.is_file()}
    assert {"generator/adapter/adapter_config.json", "discriminator/adapter/adapter_model.safetensors"} <= set(ours)
    for name, file in ours.items():
        assert file.read_bytes() == (workdir / "export" / name).read_bytes(), name


@pytest.mark.parametrize("init", ["", "generator"])
def test_the_first_discriminator(adapted, init):
    """Of the student: adapters that change nothing; of the generator: a copy of its adapters. The head is new."""
    setup = prepare_run(adapted({"discriminator.init": init}))
    generator = jax.tree.map(lambda leaf: leaf + 1, initial_generator(setup))
    discriminator = stage_start._first_discriminator(setup, generator, is_first=False)
    head = discriminator.pop("score")
    expected = generator if init else initial_generator(setup)
    jax.tree.map(np.testing.assert_array_equal, discriminator, expected)
    assert np.abs(head["kernel"]).max() > 0 and head["bias"] == 0
    assert initial_discriminator(setup, generator)["score"]["kernel"].shape == (32, 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"random_init": True}, "config.lora.rank is 4, but config.random_init is on: .* give a student"),
        ({"discriminator.init": "some/model"}, "config.discriminator.init some/model names a checkpoint, but with"),
        ({"lora.rank": -1}, "config.lora.rank is -1: it must be at least 0"),
        ({"lora.alpha": 0.0}, "config.lora.alpha is 0.0: it must be above 0"),
    ],
)
def test_refused(adapted, tmp_path, fields, message):
    with pytest.raises(UserError, match=message) as error:
        run(adapted(fields), tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "change"),
    [({"lora.rank": 2}, "config.lora.rank: 4 → 2"), ({"lora.alpha": 4.0}, "config.lora.alpha: 8.0 → 4.0")],
)
def test_other_adapters_are_another_run(finished, adapted, fields, change):
    workdir, _, _ = finished
    with pytest.raises(UserError, match="holds another run") as error:
        run(adapted(fields), workdir)
    assert change in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lora.rank": 2}, r"the generator's lora was .*4.*, and is .*2"),
        ({"lora.alpha": 16.0}, r"the generator's lora was .*8\.0.*, and is .*16\.0"),  # arrays of the same shapes
        ({"student": "moved"}, r"the adapters of .* stand on the weights of .* config\.student is .*moved"),
    ],
)
def test_what_no_force_continues(finished, adapted, weighty, tmp_path, monkeypatch, fields, message):
    """Adapters mean nothing on other weights, which no checkpoint holds."""
    monkeypatch.setattr("gadjax.trainer.session.TrainingRun", None)  # none is begun
    if "student" in fields:
        fields = {"student": str(shutil.copytree(weighty, tmp_path / "moved"))}
    with pytest.raises(UserError, match=rf"^--force: .*{message}"):
        run(adapted(fields), shutil.copytree(finished[0], tmp_path / "run"), force=True)


def test_other_weights_under_the_same_name(finished, adapted, tmp_path, monkeypatch):
    """A hub's name, say, that means a newer revision on the next machine; adapters cannot go on from it by force."""
    monkeypatch.setattr("gadjax.trainer.session.TrainingRun", None)  # none is begun
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    facts = json.loads((workdir / "run.json").read_text())
    assert facts["weights"].keys() == {"student"}
    facts["weights"]["student"] = "0123456789abcdef"
    (workdir / "run.json").write_text(json.dumps(facts))
    with pytest.raises(
        UserError, match=r"holds another run \(student's weights: '0123456789abcdef' → '[0-9a-f]{16}'\)"
    ):
        run(adapted(), workdir)
    with pytest.raises(UserError, match=r"^--force: the adapters of .* stand on the weights of .* as they were then"):
        run(adapted(), workdir, force=True)
    del facts["weights"]  # of an earlier gadjax
    (workdir / "run.json").write_text(json.dumps(facts))
    check_workdir(prepare_run(adapted()), workdir)


def test_a_workdir_from_before_adapters_is_another_run(finished, adapted, tmp_path, monkeypatch):
    """Whose config.json has no word of them; no weights are read to find out."""
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    config = json.loads((workdir / "config.json").read_text())
    del config["lora"]
    (workdir / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("gadjax.trainer.session.TrainingRun", None)  # none is begun
    with pytest.raises(UserError, match="holds another run") as error:
        run(adapted(), workdir)
    assert "(config.lora.rank: 0 → 4)" in str(error.value) and "\n" not in str(error.value)
    check_workdir(prepare_run(adapted({"lora.rank": 0})), workdir)  # as what it is, it may continue


@pytest.mark.slow  # half a minute: `distill/test_lora.py` has such a step, `test_train.py` such a run without adapters
def test_on_eight_devices(adapted, tmp_path, all_devices):
    """The whole run, with the base split over fsdp and tensor."""
    fields = {"stages": ("gad",), "mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "gad.steps": 1, "data.heldout": ""}
    setup = prepare_run(adapted(fields))
    kernel = initial_base(setup)["layers"]["mlp"]["gate"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 4
    run(adapted(fields), tmp_path / "run")
    assert untimed(tmp_path / "run")[0]["generator/kl"] == 0.0
    assert (tmp_path / "run" / "export" / "discriminator" / "adapter" / "adapter_model.safetensors").exists()
