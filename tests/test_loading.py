"""gadjax.load: a model in Python answers and scores as the commands do."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

import gadjax
from gadjax.errors import UserError

pytestmark = pytest.mark.usefixtures("one_device", "quick_compile", "shared_programs")
QUESTIONS = ["What is one plus four", "What is two plus seven", "What is three plus nine"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, tiny_config, one_device, quick_compile, shared_programs) -> pathlib.Path:
    """A finished run of a few steps."""
    folder = tmp_path_factory.mktemp("loaded") / "run"
    gadjax.train(tiny_config(), folder)
    return folder


@pytest.fixture(scope="module")
def model(workdir) -> gadjax.LoadedModel:
    return gadjax.load(workdir)


def test_answers_as_the_command(model, command, workdir, tmp_path):
    prompts, out = tmp_path / "p.txt", tmp_path / "o.jsonl"
    prompts.write_text("".join(f"{question}\n" for question in QUESTIONS))
    exported = workdir / "export" / "generator"
    done = command("gadjax.generate", f"--model={exported}", f"--prompts={prompts}", f"--out={out}", "--seed=3")
    assert done.status == 0, done.err
    answers = [json.loads(line)["response"] for line in out.read_text().splitlines()]
    assert model.generate(QUESTIONS, seed=3) == answers
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    assert model.generate(chats, seed=3) == answers
    assert gadjax.load(exported, batch_size=1).generate(QUESTIONS, temperature=0) == model.generate(
        QUESTIONS, temperature=0
    )


def test_scores_as_the_command(model, command, workdir, tmp_path):
    data, out = tmp_path / "d.jsonl", tmp_path / "o.jsonl"
    answers = ["five", "nine", "one two"]
    rows = [{"prompt": q, "response": answer} for q, answer in zip(QUESTIONS, answers, strict=True)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    exported = workdir / "export" / "discriminator"
    done = command("gadjax.score", f"--model={exported}", f"--data={data}", f"--out={out}")
    assert done.status == 0, done.err
    scores = [json.loads(line)["score"] for line in out.read_text().splitlines()]
    found = model.score(QUESTIONS, answers)
    assert found.shape == (3,) and found.dtype == np.float64 and len(set(scores)) == 3
    np.testing.assert_allclose(found, scores, rtol=1e-5)
    np.testing.assert_array_equal(gadjax.load(exported).score(QUESTIONS, answers), found)


def test_weights_are_read_and_programs_compiled_once(workdir, monkeypatch):
    from gadjax.rollout import chat_model
    from gadjax.rollout.chat_model import CheckedNetwork

    engines, engine = [], chat_model.Engine  # whose programs each one compiles
    monkeypatch.setattr(chat_model, "Engine", lambda *args, **more: engines.append(1) or engine(*args, **more))

    read, load = [], CheckedNetwork.load
    monkeypatch.setattr(CheckedNetwork, "load", lambda self, **options: read.append(self.head) or load(self))
    model = gadjax.load(workdir)
    assert read == []
    for _ in range(2):
        model.generate(QUESTIONS[:1], max_response_length=4)
        model.score(QUESTIONS[:1], ["five"])
    assert (read, engines) == (["lm", "score"], [1])


def test_what_cannot_work_is_one_line(model, workdir, tmp_path):
    exported = workdir / "export"
    with pytest.raises(UserError, match=r"discriminator\) scores answers and gives none: load a causal language"):
        gadjax.load(exported / "discriminator").generate(QUESTIONS)
    with pytest.raises(UserError, match=r"has no discriminator: gadjax\.load\(MODEL, discriminator=DIR\)"):
        gadjax.load(exported / "generator").score(QUESTIONS, QUESTIONS)
    with pytest.raises(UserError, match="3 chats, but 1 answers"):
        model.score(QUESTIONS, ["one"])
    for chats in ("one", []):
        with pytest.raises(UserError, match="chats: expected a list with at least one chat"):
            model.generate(chats)
    with pytest.raises(UserError, match=r"^chat 1: the chat ends with the assistant"):
        model.generate(["one", [{"role": "assistant", "content": "two"}]])
    with pytest.raises(UserError, match="absent"):
        gadjax.load(tmp_path / "absent")
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match=r"has exported nothing yet: .*gadjax\.export"):
        gadjax.load(tmp_path)


def test_says_what_it_is(model, workdir):
    exported = workdir / "export"
    expected = f"LoadedModel(generator={exported / 'generator'}, discriminator={exported / 'discriminator'})"
    assert repr(model) == expected
