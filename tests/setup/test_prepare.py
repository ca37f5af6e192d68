"""What a run refuses before it loads any weights, and the set-up of a run that can work."""

from __future__ import annotations

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from gadjax.config import load_config
from gadjax.errors import UserError
from gadjax.models.model import Model
from gadjax.models.save import save_pretrained
from gadjax.models.weights import read_hf_config
from gadjax.setup.blueprint import make_method
from gadjax.setup.prepare import prepare_run, stage_lengths
from gadjax.train import run

pytestmark = pytest.mark.usefixtures("one_device", "quick_compile")


@pytest.fixture
def no_weights(monkeypatch):
    """Loading or making weights fails the test."""

    def fail(*_, **__):
        raise AssertionError("weights before the checks were through")

    monkeypatch.setattr("gadjax.setup.initial.load_params", fail)
    monkeypatch.setattr(Model, "init", fail)


@pytest.fixture
def variant(tmp_path, student, hf_config, add_weights):
    """Makes a copy of the student with other fields in its config.json, and on request with weights."""

    def make(weights: bool = False, **fields) -> str:
        directory = tmp_path / "variant"
        shutil.copytree(student, directory)
        (directory / "config.json").write_text(json.dumps(hf_config(**fields)))
        return str(add_weights(directory) if weights else directory)

    return make


def refused(config, workdir: pathlib.Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        run(config, workdir)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gad.clip": -1.0}, r"config\.gad\.clip is -1"),
        ({"student": "/nowhere/model"}, "/nowhere/model: no such directory"),
        ({"student": "no-one/such-model"}, "no-one/such-model: .*the hub did not provide it"),
        ({"data.train": "nowhere.parquet"}, "nowhere.parquet: no such file"),
        ({"data.heldout": "nowhere.parquet"}, "nowhere.parquet: no such file"),
        (
            {"data.max_prompt_length": 4},
            r"config\.data\.train .*no usable row: .* 24 have prompts of more than 4 tokens",
        ),
        ({"batch_size": 32}, "24 usable rows, fewer than config.batch_size 32"),
        (
            {"row_length": 20},
            r"config\.row_length 20 is shorter than the longest prompt and .* together, \d+: raise it",
        ),
        ({"mesh.data": 3}, r"mesh .* does not cover the 1 devices"),
        ({"mesh.data": -1}, "one of them may be -1"),
        ({"evaluation.two_sample_folds": 9}, r"two_sample_folds is 9, more than the held-out prompts"),
        ({"evaluation.two_sample_folds": 4, "evaluation.prompts": 3}, r"two_sample_folds is 4, more than"),
        ({"discriminator.init": "/nowhere/discriminator"}, "/nowhere/discriminator: no such directory"),
        ({"data.template_date": "yesterday"}, "yesterday"),
        ({"data.chat_template": "{{ broken"}, "template"),
    ],
)
def test_bad_input_before_any_weights(no_weights, tiny_config, tmp_path, fields, message):
    refused(tiny_config(fields), tmp_path / "run", message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architecture GPT2LMHeadModel is not supported"),
        ({"max_position_embeddings": 24}, r"max_position_embeddings is 24, but sequences may reach \d+ tokens"),
        ({"vocab_size": 100}, r"variant has 100 embeddings but its tokenizer \d{3} tokens"),
    ],
)
def test_students_that_cannot_work(no_weights, tiny_config, tmp_path, variant, fields, message):
    refused(tiny_config({"student": variant(**fields)}), tmp_path / "run", message)


def test_held_out_prompts_that_repeat_fill_one_fold(no_weights, tiny_config, tmp_path, write_teacher):
    heldout = write_teacher(tmp_path / "h.parquet", ["What is one plus two"] * 8, ["three"] * 8)
    config = tiny_config({"data.heldout": str(heldout), "evaluation.two_sample_folds": 2})
    refused(config, tmp_path / "run", r"two_sample_folds is 2, more than the held-out prompts .* 1 of which differ")


def test_discriminator_that_is_too_short(no_weights, tiny_config, tmp_path, variant):
    where = variant(weights=True, max_position_embeddings=24)
    refused(tiny_config({"discriminator.init": where}), tmp_path / "run", f"{where}: max_position_embeddings is 24")


def test_discriminator_with_another_tokenizer(no_weights, tiny_config, tmp_path, variant, write_tokenizer):
    other = variant()
    write_tokenizer(pathlib.Path(other), ["entirely", "different", "words"])
    config = tiny_config({"discriminator.init": other})
    refused(
        config, tmp_path / "run", "has another tokenizer than the student .* choose a checkpoint of the same family"
    )


def test_same_tokenizer_but_more_embeddings_is_fine(tiny_config, variant):
    """Qwen pads some sizes to 151,936 and others to 152,064 rows."""
    setup = prepare_run(tiny_config({"discriminator.init": variant(weights=True, vocab_size=384, hidden_size=48)}))
    assert setup.discriminator.config.vocab_size == 384
    assert setup.generator.config.vocab_size == 320


def test_student_without_a_chat_template(no_weights, tiny_config, tmp_path, variant):
    base = pathlib.Path(variant())
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        if name.endswith("jinja"):
            (base / name).unlink(missing_ok=True)
        else:
            content = json.loads((base / name).read_text())
            content.pop("chat_template", None)
            (base / name).write_text(json.dumps(content))
    refused(tiny_config({"student": str(base)}), tmp_path / "run", "no chat template .*data.chat_template")


@pytest.mark.parametrize(
    ("prompts", "answers", "message"),
    [
        (["a", "b"], ["fine", " "], "row 1: `teacher_response` is empty or only white space"),
        ([], [], "the file has no rows"),
    ],
)
def test_bad_data(no_weights, tiny_config, tmp_path, write_teacher, prompts, answers, message):
    file = write_teacher(tmp_path / "bad.parquet", prompts, answers)
    refused(tiny_config({"data.train": str(file)}), tmp_path / "run", f"{file}: {message}")


def test_data_of_another_schema(no_weights, tiny_config, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = tmp_path / "bad.parquet"
    pq.write_table(pa.table({"content": ["text"], "teacher_response": ["x"]}), file)
    refused(tiny_config({"data.train": str(file)}), tmp_path / "run", "column `content` has type string; expected list")
    pq.write_table(pa.table({"prompt": ["text"]}), file)
    refused(tiny_config({"data.train": str(file)}), tmp_path / "run", "prompt: rows of no known format; expected")


@pytest.mark.parametrize("workdir", ["file", "file/run"])
def test_workdir_that_cannot_be(no_weights, tiny_config, tmp_path, workdir):
    (tmp_path / "file").write_text("")
    refused(tiny_config(), tmp_path / workdir, f"--workdir {tmp_path / workdir} cannot be written")


def spoil(directory: pathlib.Path, how: str) -> str:
    """Makes a directory's weights unfit; returns how the error names it."""
    file = directory / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    if how == "absent":
        file.unlink()
        return f"{directory}: no weights; a checkpoint holds model.safetensors"
    if how == "pickled":
        file.rename(directory / "pytorch_model.bin")
        return f"{directory}: the weights are pickled only .pytorch_model.bin."
    if how == "incomplete":
        del tensors["model.layers.1.mlp.up_proj.weight"]
        message = f"{directory}: 1 of .* tensors are missing: model.layers.1.mlp.up_proj.weight"
    else:
        tensors["model.norm.weight"] = np.zeros(33, np.float32)
        message = rf"{directory}: tensor model.norm.weight has the shape \[33\], but config.json asks for \[32\]"
    safetensors.numpy.save_file(tensors, file)
    return message


@pytest.mark.parametrize("network", ["student", "discriminator.init"])
@pytest.mark.parametrize("how", ["absent", "pickled", "incomplete", "misshapen"])
def test_weights_that_cannot_be_loaded_before_any_stage(no_weights, tiny_config, tmp_path, variant, network, how):
    """Their headers are read before the workdir is made, also those of a network that only a later stage trains."""
    directory = variant(weights=True)
    message = spoil(pathlib.Path(directory), how)
    fields = {"student": directory, "random_init": False} if network == "student" else {network: directory}
    refused(tiny_config(fields | {"stages": ("seqkd", "gad")}), tmp_path / "run", message)
    assert not (tmp_path / "run").exists()


def test_a_student_from_random_weights_needs_none(tiny_config):
    assert prepare_run(tiny_config()).config.random_init


def test_a_frozen_discriminator_needs_a_trained_head(no_weights, tiny_config, tmp_path, variant, add_weights):
    """A causal language model gets a new head, whose scores mean nothing until a stage trains it."""
    init = variant(weights=True)
    fields = {"stages": ("gad",), "gad.train_discriminator": False, "discriminator.init": init}
    refused(
        tiny_config(fields),
        tmp_path / "run",
        f"config.discriminator.init {init} is a causal language model, .* name an exported discriminator, or add",
    )
    assert not (tmp_path / "run").exists()
    assert prepare_run(tiny_config(fields | {"stages": ("warmup", "gad")})).discriminator_init == pathlib.Path(init)
    assert prepare_run(tiny_config(fields | {"gad.train_discriminator": True})).discriminator_init
    config, hf_config = read_hf_config(pathlib.Path(init))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, "float32"), Model(config, "score").abstract_params())
    exported = tmp_path / "exported"
    save_pretrained(exported, params, config, hf_config, kind="discriminator", tokenizer_dir=pathlib.Path(init))
    assert prepare_run(tiny_config(fields | {"discriminator.init": str(exported)})).discriminator_init == exported


def test_warmup_that_ends_before_the_generator_s_part(no_weights, tiny_config, tmp_path):
    """A length in epochs needs the data: an epoch of 24 rows in batches of 8 has three steps."""
    fields = {"warmup.steps": 0, "warmup.epochs": 1.0, "warmup.discriminator_only_steps": 3}
    refused(tiny_config(fields), tmp_path / "run", "discriminator_only_steps 3 leaves the generator none of .* 3 steps")
    prepare_run(tiny_config(fields | {"warmup.epochs": 2.0}))


def test_the_demo_as_it_is_shipped(all_devices):
    """Config, tokenizer and data of the repository work together."""
    config = load_config("demo")
    setup = prepare_run(config)
    assert tuple(stage_lengths(setup)) == config.stages == ("seqkd", "warmup", "gad")
    assert len(setup.train) > 2000 and len(setup.heldout) >= config.evaluation.prompts
    assert setup.generator.num_params() < 5e6
    assert setup.row_length() >= setup.sequence_length


def test_batch_must_divide_over_the_mesh(no_weights, tiny_config, all_devices):
    assert jax.device_count() == 8
    with pytest.raises(UserError, match=r"config.batch_size 4 is not divisible by the 8 parts .* a multiple of 8"):
        prepare_run(tiny_config({"batch_size": 4}))
    with pytest.raises(UserError, match="the 8 parts"):
        prepare_run(tiny_config({"batch_size": 12}))
    setup = prepare_run(tiny_config({"batch_size": 4, "mesh.tensor": 2}))
    assert dict(setup.mesh.shape) == {"data": 1, "fsdp": 4, "tensor": 2}
    assert setup.row_shape(1).row_multiple == 4


def test_setup(tiny_config):
    setup = prepare_run(tiny_config({"data.max_response_length": 9}))
    assert setup.sequence_length == setup.train.prompt_width + 9 == setup.row_length()
    assert prepare_run(tiny_config({"row_length": 100})).row_length(5) == 100
    assert setup.generator.head == "lm" and setup.discriminator.head == "score"
    assert setup.generator.config.dtype == "float32"
    sampling = setup.sampling(0.5)
    assert (sampling.max_response_length, sampling.temperature) == (9, 0.5)
    assert (sampling.top_p, sampling.top_k) == (1.0, 0)
    assert sampling.eos_ids == setup.tokenizer.eos_ids


def test_stage_lengths(tiny_config):
    """24 rows in batches of 8 are 3 steps an epoch; a number of steps overrides epochs."""
    fields = {"stages": ("seqkd", "warmup", "gad"), "seqkd.steps": 0, "seqkd.epochs": 2.0, "gad.steps": 0}
    setup = prepare_run(tiny_config(fields | {"gad.epochs": 0.1}))
    assert stage_lengths(setup) == {"seqkd": 6, "warmup": 2, "gad": 1}


def test_method_is_the_config(tiny_config):
    setup = prepare_run(tiny_config({"gad.kl_coefficient": 0.5, "discriminator.bt_temperature": 2.0}))
    gad, seqkd = (make_method(setup, stage) for stage in ("gad", "seqkd"))
    assert (gad.kl_coefficient, gad.clip, gad.num_samples, gad.sampling.temperature) == (0.5, 0.2, 2, 1.0)
    assert gad.bt_temperature == 2.0
    setup = prepare_run(tiny_config({"discriminator.loss": "ce"}))
    assert all(make_method(setup, stage).discriminator_loss == "ce" for stage in ("warmup", "gad"))
    assert seqkd.discriminator is None
