"""Checkpoints: a whole state comes back in the layout that was asked for, and one network without the rest."""

from __future__ import annotations

import errno

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from orbax.checkpoint._src.path import atomicity_defaults
from orbax.checkpoint._src.path.atomicity import CommitFileTemporaryPath

from gadjax.distill import state as states
from gadjax.distill.state import GadState
from gadjax.errors import UserError
from gadjax.parallel import mesh as meshes
from gadjax.workdir.checkpoints import Checkpoints, clear_unfinished
from gadjax.workdir.storage import is_damage

pytestmark = pytest.mark.usefixtures("quick_compile")

PROGRESS = {"stage": "gad", "stage_step": 2, "replay_added": 5}
OPTIMIZER = states.adamw(1e-3, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01, clip=1.0)


def tree(seed: int):
    rng = np.random.default_rng(seed)
    return {"a": {"kernel": jnp.asarray(rng.normal(size=(8, 4)), jnp.float32)}, "b": jnp.asarray(rng.normal(size=3))}


def state(reference: str = "bfloat16") -> GadState:
    networks = [states.create(tree(seed), OPTIMIZER) for seed in (0, 1)]
    networks[0] = networks[0].replace(step=jnp.int32(7), skipped=jnp.int32(2))
    return GadState(*networks, jax.tree.map(lambda leaf: leaf.astype(reference), tree(2)))


def like(value, spread: bool = False):
    """The shapes of a state; with `spread`, its kernels lie over all eight devices."""
    mesh = meshes.make_mesh(1, 8, 1)

    def abstract(leaf):
        sharding = meshes.rows(mesh) if spread and leaf.shape == (8, 4) else meshes.replicated(mesh)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(abstract, value)


@pytest.fixture
def saved(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    replay = {"tokens": np.arange(12, dtype=np.int32).reshape(3, 4), "lengths": np.array([1, 2, 3], np.int32)}
    checkpoints.save(3, state(), replay, PROGRESS)
    replay["tokens"][:] = -1  # the run goes on while files are being written
    checkpoints.wait()
    return tmp_path


@pytest.mark.parametrize("spread", [False, True])
def test_state(saved, spread):
    restored = Checkpoints(saved).state(3, like(state(), spread))
    assert jax.tree.structure(restored) == jax.tree.structure(state())
    for back, before in zip(jax.tree.leaves(restored), jax.tree.leaves(state()), strict=True):
        assert back.dtype == before.dtype
        np.testing.assert_array_equal(np.asarray(back, np.float32), np.asarray(before, np.float32))
    kernel = restored.generator.params["a"]["kernel"]
    assert kernel.is_fully_replicated != spread
    assert kernel.addressable_shards[0].data.shape == ((1, 4) if spread else (8, 4))


def test_progress_and_replay(saved):
    checkpoints = Checkpoints(saved)
    assert checkpoints.progress(3) == PROGRESS
    replay = checkpoints.replay(3)
    np.testing.assert_array_equal(replay["tokens"], np.arange(12).reshape(3, 4))
    assert replay["tokens"].dtype == np.int32
    replay["lengths"][0] = 9  # the ring is written to


def test_without_replay(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(), {}, PROGRESS)
    checkpoints.wait()
    assert checkpoints.replay(1) == {}


@pytest.mark.parametrize(("network", "seed"), [("generator", 0), ("discriminator", 1)])
def test_parameters_alone(saved, network, seed):
    params = Checkpoints(saved).params(3, network, like(tree(seed), spread=True))
    jax.tree.map(np.testing.assert_array_equal, params, tree(seed))
    assert params["a"]["kernel"].addressable_shards[0].data.shape == (1, 4)


def test_a_network_that_the_stage_does_not_have(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, GadState(states.create(tree(0), OPTIMIZER)), {}, PROGRESS)
    checkpoints.wait()
    assert checkpoints.params(1, "discriminator", like(tree(0))) is None
    restored = checkpoints.state(1, GadState(like(states.create(tree(0), OPTIMIZER))))
    assert restored.discriminator is None and restored.reference is None


def test_keep(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 10):
        checkpoints.save(step, {"x": jnp.ones(2)}, {}, PROGRESS)
    checkpoints.wait()
    assert checkpoints.steps() == [2, 10]
    assert Checkpoints(tmp_path).steps() == [2, 10]


@pytest.mark.parametrize(
    ("figure", "values", "best"),
    [
        ("nll", [3.0, 1.0, 2.0, float("nan")], (2, 1.0)),
        ("rouge_l", [0.1, 0.3, 0.3, 0.2], (3, 0.3)),  # the last of equal ones
        ("two_sample", [0.8, 0.45, 0.4, None], (2, 0.45)),  # nearest to a half, from either side
    ],
)
def test_the_best_is_kept(tmp_path, figure, values, best):
    """It is kept beside the last one, which is not measured, and found again from the folder alone."""
    checkpoints = Checkpoints(tmp_path, keep=1, best=figure)
    assert checkpoints.best() is None
    for step, value in enumerate(values, start=1):
        figures = {} if value is None else {figure: value}
        progress = PROGRESS | {"figures": figures}
        better = checkpoints.improves(figures)
        checkpoints.save(step, {"x": jnp.ones(2)}, {}, progress)
        assert checkpoints.best() is None or (checkpoints.best()[0] == step) >= better
    checkpoints.save(9, {"x": jnp.ones(2)}, {}, PROGRESS)
    checkpoints.wait()
    assert checkpoints.steps() == [best[0], 9]
    again = Checkpoints(tmp_path, keep=1, best=figure)
    assert checkpoints.best() == again.best() == best
    assert not again.improves({figure: best[1]}) and not again.improves({})


@pytest.mark.parametrize(
    "error",
    [
        # What TensorStore says of a file without permission, and in a process with too many open files.
        ValueError('PERMISSION_DENIED: Error opening "zarr" driver: Failed to open file: [OS error: EACCES]'),
        ValueError("RESOURCE_EXHAUSTED: Error reading local file: [OS error: EMFILE Too many open files]"),
        ValueError("UNAVAILABLE: Error reading gs://bucket/run/4/state: HTTP status code: 503"),
        ValueError("INTERNAL: Error reading local file: Stale file handle"),
        OSError(errno.EIO, "Input/output error"),
        type("HttpError", (Exception,), {})("503 from some client"),
    ],
)
def test_an_error_of_the_machine_is_no_damage(error):
    assert not is_damage(error)


@pytest.mark.parametrize(
    "error",
    [ValueError("DATA_LOSS: Error decoding chunk"), KeyError("stage"), FileNotFoundError(errno.ENOENT, "No such file")],
)
def test_an_error_of_the_files_is_damage(error):
    assert is_damage(error)


def test_preemptions_are_not_asked_for(tmp_path, monkeypatch):
    """JAX counts the questions of all callers, to stop all processes at the same one."""
    asked = []
    monkeypatch.setattr("orbax.checkpoint._src.multihost.multihost.reached_preemption", asked.append)
    monkeypatch.setattr("orbax.checkpoint.utils.reached_preemption", asked.append)
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, {"x": 1.0}, {}, {})
    checkpoints.close()
    assert asked == []


def test_a_damaged_checkpoint_is_not_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=9, best="nll")
    for step, value in ((1, 2.0), (2, 1.0)):
        checkpoints.save(step, {"x": jnp.ones(2)}, {}, PROGRESS | {"figures": {"nll": value}})
    checkpoints.wait()
    (tmp_path / "checkpoints" / "2" / "progress" / "metadata").write_text("{")
    assert Checkpoints(tmp_path, best="nll").best() == (1, 2.0)


def test_a_machine_that_cannot_read_is_no_damage(tmp_path, monkeypatch):
    """Otherwise the best checkpoint would be lost, or an older stage taken for the run's."""
    checkpoints = Checkpoints(tmp_path, keep=9)
    checkpoints.save(1, {"x": jnp.ones(2)}, {}, PROGRESS | {"figures": {"nll": 1.0}})
    checkpoints.wait()
    monkeypatch.setattr(Checkpoints, "progress", lambda self, step: (_ for _ in ()).throw(OSError(116, "stale handle")))
    for ask in (lambda: Checkpoints(tmp_path, best="nll"), checkpoints.stage):
        with pytest.raises(UserError, match=r"checkpoints cannot be read \(stale handle\)"):
            ask()


def test_a_step_saved_again_without_figures_is_not_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=9, best="nll")
    for step, value in ((1, 2.0), (2, 1.0)):
        checkpoints.save(step, {"x": jnp.ones(2)}, {}, PROGRESS | {"figures": {"nll": value}})
    checkpoints.wait()
    checkpoints.set_aside(2)
    checkpoints.save(2, {"x": jnp.ones(2)}, {}, PROGRESS)
    checkpoints.wait()
    assert checkpoints.best() == (1, 2.0)


def test_no_best_one(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, best="nll")
    with pytest.raises(UserError, match=r"no checkpoint has the figure nll \(config\.checkpoint\.best\) yet"):
        checkpoints.best_step()
    with pytest.raises(UserError, match=r"no checkpoint is the best, as the run has no config\.checkpoint\.best"):
        Checkpoints(tmp_path).best_step()


def test_a_state_without_metadata(saved):
    (saved / "checkpoints" / "3" / "state" / "_METADATA").unlink()
    with pytest.raises(ValueError, match="the metadata of its state is gone"):
        Checkpoints(saved).shapes(3)


@pytest.mark.parametrize(
    "error",
    [
        ImportError("Please install gcsfs to access Google Storage"),
        PermissionError(13, "Permission denied"),
        RuntimeError("Anonymous caller does not have\nstorage.objects.list access"),
    ],
)
def test_an_object_store_that_cannot_be_opened(tmp_path, monkeypatch, error):
    """The test uses neither a library for object stores nor a network."""
    monkeypatch.setattr(ocp, "CheckpointManager", lambda *_, **__: (_ for _ in ()).throw(error))
    with pytest.raises(
        UserError, match=r"^gs://bucket/run cannot be opened \(.+\): .* config\.checkpoint\.dir"
    ) as raised:
        Checkpoints(tmp_path, directory="gs://bucket/run", keep=1)
    assert "\n" not in str(raised.value)


def test_what_a_killed_save_left_is_removed(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(3, {"x": jnp.ones(2)}, {}, PROGRESS)
    checkpoints.close()
    unfinished = checkpoints.directory / "4.orbax-checkpoint-tmp"
    (unfinished / "state").mkdir(parents=True)
    (checkpoints.directory / "2.damaged").mkdir()
    (checkpoints.directory / "notes.orbax-checkpoint-tmp").mkdir()  # not the number of a step, so not made by Orbax
    clear_unfinished(checkpoints.directory)
    left = sorted(path.name for path in checkpoints.directory.iterdir())
    assert left == ["2.damaged", "3", "notes.orbax-checkpoint-tmp"]


def test_in_a_store_other_folders_stay(tmp_path, monkeypatch):
    """Orbax takes every folder there for unfinished: a store cannot rename, so a file marks a complete save."""
    monkeypatch.setattr(
        atomicity_defaults, "get_default_temporary_path_class", lambda *_, **__: CommitFileTemporaryPath
    )
    for name in ("3", "4", "5.damaged", "export"):
        (tmp_path / name).mkdir()
    (tmp_path / "3" / "commit_success.txt").touch()
    (tmp_path / "workdir.txt").touch()
    clear_unfinished(epath.Path(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "export", "workdir.txt"]


def test_what_cannot_be_cleared_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(
        ocp.utils, "tmp_checkpoints", lambda directory: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    )
    with pytest.raises(UserError, match=r"/away cannot be cleared of unfinished checkpoints \(Permission denied\): "):
        clear_unfinished(epath.Path(tmp_path / "away"))


def test_unknown_step(saved):
    checkpoints = Checkpoints(saved)
    for ask in (lambda: checkpoints.progress(4), lambda: checkpoints.params(4, "generator", like(tree(0)))):
        with pytest.raises(UserError, match=r"checkpoints has no checkpoint of step 4; there are: 3"):
            ask()


def test_reading_parameters_leaves_nothing_open(saved, monkeypatch):
    opened, closed = [], []
    init, close = ocp.CheckpointManager.__init__, ocp.CheckpointManager.close

    def counted(self, *args, **kwargs):
        opened.append(self)
        init(self, *args, **kwargs)

    monkeypatch.setattr(ocp.CheckpointManager, "__init__", counted)
    monkeypatch.setattr(ocp.CheckpointManager, "close", lambda self: (closed.append(self), close(self)))
    checkpoints = Checkpoints(saved)
    checkpoints.params(3, "generator", like(tree(0)))
    checkpoints.close()
    assert len(opened) == 2 and set(map(id, opened)) == set(map(id, closed))


def test_closing_waits_for_what_is_being_written(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(3, state(), {}, PROGRESS)
    checkpoints.close()
    assert Checkpoints(tmp_path).progress(3) == PROGRESS


def test_looking_for_checkpoints_makes_no_folder(tmp_path):
    assert Checkpoints(tmp_path / "run").steps() == []
    assert list(tmp_path.iterdir()) == []


def test_empty_folder(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == []
    with pytest.raises(UserError, match="no checkpoint of step 1; there are: none"):
        checkpoints.progress(1)
