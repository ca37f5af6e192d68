"""--force: a workdir's run continues as a different one, if its checkpoint can be used."""

from __future__ import annotations

import json
import pathlib
import shutil

import pytest

from gadjax.errors import UserError
from gadjax.metrics import read_metrics
from gadjax.train import run
from gadjax.workdir import disk
from gadjax.workdir.checkpoints import Checkpoints

pytestmark = pytest.mark.usefixtures("quick_compile", "one_device", "shared_programs")


@pytest.fixture
def continued(finished_run, tmp_path) -> pathlib.Path:
    """A copy of the workdir of a finished run with 3 steps of warmup and 3 steps of GAD, with replay."""
    return shutil.copytree(finished_run.workdir, tmp_path / "copy")


def steps(workdir: pathlib.Path) -> list[int]:
    return [line["step"] for line in read_metrics(workdir / "metrics.jsonl") if line["kind"] == "train"]


def test_seed_data_and_sizes(tiny_config, heldout_file, tmp_path, capfd):
    """The differences are shown, and steps count on. Then the workdir holds the new run, which needs no --force."""
    fields = {"stages": ("seqkd",), "seqkd.steps": 2, "data.heldout": ""}
    run(tiny_config(fields), tmp_path)
    fields |= {"seed": 7, "batch_size": 4, "data.max_response_length": 6, "data.train": str(heldout_file)}
    fields |= {"seqkd.steps": 3}
    with pytest.raises(UserError, match=r"holds another run \(.*\): use another --workdir, or --force$"):
        run(tiny_config(fields), tmp_path)
    run(tiny_config(fields), tmp_path, force=True)
    (warning,) = [line for line in capfd.readouterr().out.splitlines() if line.startswith("warning: --force")]
    for change in ("config.seed: 0 → 7", "config.batch_size: 8 → 4", "config.data.max_response_length: 8 → 6"):
        assert change in warning
    assert "text of the training data: " in warning and "training rows, usable: 24 → 8" in warning
    assert steps(tmp_path) == [1, 2, 3]
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["tokens"] <= 4 * 6
    run(tiny_config(fields | {"seqkd.steps": 4}), tmp_path)
    assert steps(tmp_path) == [1, 2, 3, 4]


@pytest.mark.slow
def test_groups_of_other_sizes_leave_the_replay(continued, tiny_config, rich_fields, capfd):
    fields = rich_fields | {"rollout.num_samples": 3, "gad.steps": 4, "evaluation.two_sample_folds": 0}
    run(tiny_config(fields), continued, force=True)
    out = capfd.readouterr().out
    assert "config.rollout.num_samples: 2 → 3" in out and "warning: the replayed groups have other sizes" in out
    assert steps(continued) == [1, 2, 3, 4, 5, 6, 7]
    assert Checkpoints(continued).progress(7)["replay_added"] == 8
    run(tiny_config(fields | {"gad.steps": 5}), continued)
    assert Checkpoints(continued).progress(8)["replay_added"] == 16


def test_nothing_to_force(continued, finished_run, tiny_config, rich_fields, capfd):
    assert run(tiny_config(rich_fields), continued, force=True) == finished_run.figures
    assert "warning" not in capfd.readouterr().out


def contents(workdir: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(workdir)): path.read_bytes() for path in workdir.rglob("*") if path.is_file()}


def refused(config, workdir: pathlib.Path, message: str) -> None:
    before = contents(workdir)
    with pytest.raises(UserError, match=rf"^--force: .*{message}") as error:
        run(config, workdir, force=True)
    assert "\n" not in str(error.value)
    assert contents(workdir) == before


@pytest.mark.parametrize(
    ("field", "value", "difference"),
    [
        ("intermediate_size", 64, "generator's intermediate_size was 48, and is 64"),
        ("rope_theta", 20000.0, "generator's rope was .*10000.*, and is .*20000"),  # arrays of the same shapes
        ("rms_norm_eps", 1e-6, "generator's rms_norm_eps was 1e-05, and is 1e-06"),
    ],
)
def test_other_networks(continued, tiny_config, rich_fields, student, hf_config, tmp_path, field, value, difference):
    other = shutil.copytree(student, tmp_path / "other")
    (other / "config.json").write_text(json.dumps(hf_config(**{field: value})))
    config = tiny_config(rich_fields | {"student": str(other)})
    refused(config, continued, rf"is of other networks: the {difference}")


def test_without_room(continued, tiny_config, rich_fields, monkeypatch):
    """A check that fails after --force was accepted leaves the workdir unchanged too."""
    before = contents(continued)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 0))
    with pytest.raises(UserError, match="GB are free there"):
        run(tiny_config(rich_fields | {"seed": 7}), continued, force=True)
    assert contents(continued) == before


def test_another_tokenizer(continued, tiny_config, rich_fields, student, write_tokenizer, tmp_path):
    other = shutil.copytree(student, tmp_path / "other")
    write_tokenizer(other, ["quite", "other", "words"])
    refused(tiny_config(rich_fields | {"student": str(other)}), continued, "has another tokenizer than .*/other")


def test_without_the_stage_in_progress(continued, tiny_config, rich_fields):
    config = tiny_config(rich_fields | {"stages": ("warmup",)})
    refused(config, continued, "is in stage gad, which config.stages leaves out")


@pytest.mark.parametrize("gone", ["state", "state/_METADATA"])
def test_a_damaged_checkpoint(continued, tiny_config, rich_fields, gone):
    place = continued / "checkpoints" / "6" / gone
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    refused(tiny_config(rich_fields | {"seed": 7}), continued, "of step 6 .* is damaged .* run once without --force")
