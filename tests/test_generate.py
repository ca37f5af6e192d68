"""python -m gadjax.generate, against transformers' own greedy generation."""

from __future__ import annotations

import json
import pathlib
import re
import sys
import types

import pytest

pytestmark = pytest.mark.usefixtures("one_device", "quick_compile")

QUESTIONS = [f"What is {a} plus {b}" for a in ("one", "two", "three") for b in ("four", "seven", "nine and a half")]


@pytest.fixture(scope="module")
def generator(finished_run) -> pathlib.Path:
    return finished_run.workdir / "export" / "generator"


@pytest.fixture
def prompts(tmp_path) -> pathlib.Path:
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps({"prompt": question}) + "\n" for question in QUESTIONS))
    return file


def read(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_greedy_is_transformers_greedy(command, transformers_greedy, generator, prompts, tmp_path):
    out = tmp_path / "o.jsonl"
    done = command(
        "gadjax.generate",
        f"--model={generator}",
        f"--prompts={prompts}",
        f"--out={out}",
        "--temperature=0",
        "--max_response_length=24",
        "--batch_size=4",
    )
    assert done.status == 0, done.err
    assert done.out == f"9 answers: {out}\n"
    lines = read(out)
    assert [line["content"][0]["content"] for line in lines] == QUESTIONS
    expected = transformers_greedy(generator, [line["content"] for line in lines], 24)
    for line, answer in zip(lines, expected, strict=True):
        assert set(line) == {"id", "content", "response", "finish_reason", "tokens"}
        assert (line["response"], line["tokens"]) == (answer.text, answer.tokens)
        assert line["finish_reason"] == ("stop" if answer.ended else "length")


def test_progress_shows_before_the_first_answer(command, prompts, tmp_path, monkeypatch):
    class Slow:
        """A model that has not reported progress yet."""

        def sampling(self, **_):
            return None

        def answer(self, chats, *_, **__):
            print("answering", file=sys.stderr)
            return [types.SimpleNamespace(text="x", ended=True, tokens=1)] * len(chats)

    monkeypatch.setattr("gadjax.rollout.chat_model.load_chat_model", lambda *_, **__: Slow())
    done = command("gadjax.generate", "--model=m", f"--prompts={prompts}", f"--out={tmp_path / 'o.jsonl'}")
    assert done.status == 0, done.err
    assert f"generating 0/{len(QUESTIONS)}, ? left\nanswering\n" in done.err


def test_seeds_and_batches(command, generator, prompts, tmp_path):
    def answers(*flags: str) -> list[str]:
        out = tmp_path / "o.jsonl"
        done = command("gadjax.generate", f"--model={generator}", f"--prompts={prompts}", f"--out={out}", *flags)
        assert done.status == 0, done.err
        return [line["response"] for line in read(out)]

    limit = "--max_response_length=8"
    first = answers(limit)
    assert answers(limit, "--batch_size=9") == first
    assert answers(limit, "--seed=1") != first
    assert answers(limit, "--top_k=1") == answers(limit, "--temperature=0") == answers(limit, "--top_p=0")


def test_the_default_limit_is_what_fits(command, generator, prompts, tmp_path):
    """The model has 128 positions; the default asks for 512 tokens."""
    out = tmp_path / "o.jsonl"
    done = command("gadjax.generate", f"--model={generator}", f"--prompts={prompts}", f"--out={out}")
    assert done.status == 0, done.err
    lines = read(out)
    assert len(lines) == len(QUESTIONS)
    assert all(line["tokens"] < 128 and (line["finish_reason"] == "stop" or line["tokens"] > 64) for line in lines)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"prompts": "{tmp}/absent.jsonl"}, "--prompts=.*absent.jsonl: no such file"),
        ({"prompts": "{tmp}/p.csv"}, r"p.csv: expected a file that ends in \.jsonl"),
        ({"prompts": "{tmp}/broken.jsonl"}, "broken.jsonl:1: not JSON"),
        ({"prompts": "{tmp}/empty.jsonl"}, "empty.jsonl: the file holds no prompts"),
        ({"out": "{tmp}/absent/o.jsonl"}, "--out=.*absent/o.jsonl cannot be written: No such file or directory"),
        ({"model": "{tmp}/absent"}, "absent: no such directory"),
        ({"model": "{discriminator}"}, "is a LlamaForTokenClassification, but this command needs a causal language"),
        ({"temperature": "-1"}, "temperature"),
        ({"top_p": "1.5"}, "top_p"),
        ({"max_response_length": "0"}, "max_response_length"),
        ({"max_response_length": "120"}, "max_position_embeddings is 128, but sequences may reach"),
        ({"dtype": "float16"}, "dtype"),
    ],
)
def test_mistakes(command, generator, prompts, tmp_path, flags, message):
    (tmp_path / "broken.jsonl").write_text("{nothing")
    (tmp_path / "empty.jsonl").write_text("\n")
    given = {"model": generator, "prompts": prompts, "out": tmp_path / "o.jsonl"} | flags
    places = {"tmp": tmp_path, "discriminator": generator.with_name("discriminator")}
    done = command("gadjax.generate", *(f"--{name}={str(value).format(**places)}" for name, value in given.items()))
    assert done.status == 2
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(message, errors[0]), errors[0]
    assert not list(tmp_path.glob("o.jsonl*"))
