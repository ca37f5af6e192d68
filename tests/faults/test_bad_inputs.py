"""A corpus of bad inputs, each through the command that reads it: one line that says what to mend, exit status 2."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from unittest import mock

import pytest

from tests.faults.bad_data import PARQUET, PROMPTS
from tests.faults.bad_input import BadInput, Place
from tests.faults.bad_models import MODELS
from tests.faults.bad_settings import CONFIGS, FLAGS, TOPOLOGIES

CORPUS = [*PARQUET, *PROMPTS, *MODELS, *CONFIGS, *FLAGS, *TOPOLOGIES]

CONFIG = """
from gadjax.config import default_config

def get_config():
    config = default_config()
    config.student, config.random_init = {student!r}, True
    config.data.train, config.data.heldout = {train!r}, ""
    config.data.max_prompt_length, config.data.max_response_length = 48, 8
    config.batch_size = 8
    config.rollout.num_samples = 2
    config.warmup.steps, config.warmup.discriminator_only_steps, config.gad.steps = 2, 1, 2
    return config
"""


@pytest.fixture(scope="session")
def student_with_weights(tmp_path_factory, student, add_weights):
    """The student, with weights of small values."""
    import shutil

    return add_weights(shutil.copytree(student, tmp_path_factory.mktemp("weights") / "student"))


@pytest.fixture
def place(repo, tmp_path, student, student_with_weights, train_file, monkeypatch) -> Place:
    """An empty folder for an input's files. Training that gets as far as weights fails the test."""
    from gadjax.models.model import Model

    def fail(*_, **__):
        raise AssertionError("weights before the checks were through")

    monkeypatch.setattr("gadjax.setup.initial.load_params", fail)
    monkeypatch.setattr(Model, "init", fail)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.chdir(repo)
    config = tmp_path / "given" / "config.py"
    config.parent.mkdir()
    config.write_text(CONFIG.format(student=str(student), train=str(train_file)))
    (tmp_path / "folder").mkdir()
    return Place(tmp_path / "folder", config, student, student_with_weights, train_file, repo)


@pytest.mark.parametrize("bad", CORPUS, ids=[bad.name.replace(" ", "-") for bad in CORPUS])
def test_a_bad_input_is_one_line(command, place, bad: BadInput):
    module, *arguments = bad.arguments(place)
    with mock.patch.dict(os.environ):  # gadjax.plan sets what JAX reads
        done = command(module, *arguments)
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert done.status == 2 and len(errors) == 1, done.err
    assert done.err.endswith(errors[0] + "\n"), "nothing after the error, and the error is one line"
    assert "Traceback" not in done.err
    assert re.search(bad.message, errors[0]), errors[0]
    assert len(errors[0]) < 1000, "a line that can be read"
    assert not (place.folder / "run" / "metrics.jsonl").exists()


def test_the_corpus_is_large_enough():
    """Counts of the issue's: 60 inputs, 40 messages; numbers, names of fields and values do not make another one."""
    names = [bad.name for bad in CORPUS]
    assert len(set(names)) == len(names) >= 60
    messages = {re.sub(r"[\d.\\]+|'[^']*'|`[^`]*`", "", bad.message) for bad in CORPUS}
    assert len(messages) >= 40


def test_a_real_process(place):
    file = place.parquet([[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]])
    module, *arguments = place.run(data__train=file)
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last == f"error: {file}: row 0: the chat ends with the assistant; it must end with a user turn"
