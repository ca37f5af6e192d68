"""python -m gadjax.generate, against transformers' own greedy generation, and the best of several against a loop."""

from __future__ import annotations

import itertools
import json
import pathlib
import re
import sys
from collections.abc import Callable

import jax
import numpy as np
import pytest

from gadjax.data.prompts import read_prompts
from gadjax.evaluation import best_of
from gadjax.rollout.chat_model import ChatModel, CheckedNetwork
from gadjax.rollout.engine import Engine
from gadjax.rollout.sampler import Sampling
from tests.evaluation.alone import Alone

pytestmark = pytest.mark.usefixtures("one_device", "quick_compile", "shared_programs")

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


@pytest.fixture
def interrupt(monkeypatch) -> Callable[[int], None]:
    """Lets Ctrl-C come when so many prompts have been answered; None takes it back."""
    whole = ChatModel.complete_as_they_end

    def after(count: int | None) -> None:
        def answer(self, *arguments, **settings):
            for number, found in enumerate(whole(self, *arguments, **settings)):
                if number == count:
                    raise KeyboardInterrupt
                yield found

        monkeypatch.setattr(ChatModel, "complete_as_they_end", answer)

    return after


def test_progress_shows_before_the_first_answer(command, generator, prompts, tmp_path, monkeypatch):
    whole = ChatModel.complete_as_they_end

    def answer(self, *arguments, **settings):
        print("answering", file=sys.stderr)
        yield from whole(self, *arguments, **settings)

    monkeypatch.setattr(ChatModel, "complete_as_they_end", answer)
    limit = "--max_response_length=8"
    done = command("gadjax.generate", f"--model={generator}", f"--prompts={prompts}", f"--out={tmp_path / 'o'}", limit)
    assert done.status == 0, done.err
    assert f"generating 0/{len(QUESTIONS)}, ? left\nanswering\n" in done.err
    assert f"generating {len(QUESTIONS)}/{len(QUESTIONS)}, " in done.err


def test_seeds_and_batches(command, generator, prompts, tmp_path):
    outs = (tmp_path / f"{number}.jsonl" for number in itertools.count())

    def answers(*flags: str) -> list[str]:
        out = next(outs)
        done = command("gadjax.generate", f"--model={generator}", f"--prompts={prompts}", f"--out={out}", *flags)
        assert done.status == 0, done.err
        return [line["response"] for line in read(out)]

    limit = "--max_response_length=8"
    first = answers(limit)
    assert answers(limit, "--batch_size=9") == first
    assert answers(limit, "--seed=1") != first
    assert answers(limit, "--top_k=1") == answers(limit, "--temperature=0") == answers(limit, "--top_p=0")


@pytest.mark.parametrize("several", [False, True], ids=["one", "best of two"])
def test_an_interrupted_command_goes_on(command, generator, prompts, tmp_path, monkeypatch, interrupt, several):
    """The file is the same as without an interruption; what was drawn is not drawn again; the rest is added."""
    asked: list[int] = []
    calls = Engine._calls

    def watch(self, *arguments, **settings):
        for call in calls(self, *arguments, **settings):
            asked.extend(place for _, place in call.held)
            yield call

    monkeypatch.setattr(Engine, "_calls", watch)
    best = ("--best_of=2", f"--discriminator={generator.with_name('discriminator')}", "--all") if several else ()

    def run(out: pathlib.Path, *more: str):
        flags = "--max_response_length=8", "--batch_size=2", *best, *more
        return command("gadjax.generate", f"--model={generator}", f"--prompts={prompts}", f"--out={out}", *flags)

    whole, out = tmp_path / "whole.jsonl", tmp_path / "o.jsonl"
    assert run(whole).status == 0
    log = out.with_name("o.jsonl.draws.jsonl") if several else out
    kept: list[str] = []
    for count in (0, 4, 2):
        interrupt(count)
        asked.clear()
        done = run(out)
        assert done.status == 130
        assert done.err.endswith("interrupted; the same command goes on from here\n")
        assert sorted(asked) == sorted(set(range(len(QUESTIONS))) - {ids(prompts)[name] for name in kept})
        kept = [line["id"] for line in read(log)]
        assert out.exists() != several
    assert len(kept) == 6 and done.err.startswith(f"4 of {len(QUESTIONS)} prompts were answered before\n")
    with log.open("a") as file:
        file.write('{"id": "torn')
    interrupt(None)
    if several:
        with monkeypatch.context() as patch:
            patch.setattr(best_of, "score_draws", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
            assert run(out).status == 130 and len(read(log)) == len(QUESTIONS)
    done = run(out)
    assert done.status == 0, done.err
    assert out.read_bytes() == whole.read_bytes()
    assert ("(6 from before)" in done.out) != several
    assert sorted(path.name for path in tmp_path.glob("o.*")) == ["o.jsonl", "o.jsonl.settings.json"]
    before = out.stat()
    monkeypatch.setattr(CheckedNetwork, "load", lambda *_, **__: pytest.fail("weights were read"))
    done = run(out)
    assert (done.status, done.err) == (0, "") and re.fullmatch(rf"all \d+ answers are there already: {out}\n", done.out)
    assert out.stat().st_mtime_ns == before.st_mtime_ns
    done = run(out, "--top_k=5")
    assert done.status == 2
    assert f"{out} holds answers with other settings (--top_k: 0 before, 5 now); give another" in done.err


def ids(prompts: pathlib.Path) -> dict[str, int]:
    """Places of the prompts by their ids."""
    return {prompt.id: place for place, prompt in enumerate(read_prompts(prompts))}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("prompts", r"--prompts: 9 prompts, hash \w+ before, 10 prompts, hash \w+ now"),
        ("model", r"\(--model: weights \w+, tokenizer \w+ before, weights \w+, tokenizer \w+ now\)"),
        ("settings", "o.jsonl is there, but .*o.jsonl.settings.json does not say how its answers were drawn"),
        ("best", r"\(--discriminator: None before, weights .* now; --best_of: 1 before, 2 now\)"),
        ("one", r"o.jsonl.draws.jsonl holds answers with other settings \(--discriminator: .*; --best_of: 2 before, 1"),
    ],
)
def test_an_output_of_something_else(
    command, generator, prompts, tmp_path, monkeypatch, interrupt, other_student, change, message
):
    out = tmp_path / "o.jsonl"
    given = {"model": generator, "prompts": prompts, "out": out, "max_response_length": 8}
    best = {"best_of": 2, "discriminator": generator.with_name("discriminator")}
    log = out.with_name("o.jsonl.draws.jsonl") if change == "one" else out
    interrupt(2)
    first = given | best if change == "one" else given
    assert command("gadjax.generate", *(f"--{name}={value}" for name, value in first.items())).status == 130
    before = log.read_bytes()
    assert len(before.splitlines()) == 2
    if change == "prompts":
        with prompts.open("a") as file:
            file.write('{"prompt": "What is one plus one"}\n')
    elif change == "model":
        given["model"] = other_student
    elif change == "settings":
        out.with_name("o.jsonl.settings.json").unlink()
    elif change == "best":
        given |= best
    monkeypatch.setattr(CheckedNetwork, "load", lambda *_, **__: pytest.fail("weights were read"))
    done = command("gadjax.generate", *(f"--{name}={value}" for name, value in given.items()))
    assert done.status == 2 and len(done.err.splitlines()) == 1
    assert re.search(message, done.err), done.err
    assert log.read_bytes() == before


@pytest.mark.parametrize("kind", ["score", "likelihood"])
def test_the_best_of_several(command, generator, prompts, other_student, tmp_path, kind):
    """Against a loop that draws token by token with the same keys, and scores alone."""
    discriminator = generator.with_name("discriminator") if kind == "score" else other_student
    said: list[tuple[str, str]] = []

    def answers(*flags: str) -> list[dict]:
        (folder := tmp_path / str(len(said))).mkdir()
        out = folder / "o.jsonl"
        given = f"--model={generator}", f"--prompts={prompts}", f"--out={out}", "--batch_size=4", "--seed=5"
        done = command("gadjax.generate", *given, "--temperature=0.7", "--max_response_length=6", *flags)
        assert done.status == 0, done.err
        said.append((done.out, done.err))
        return read(out)

    chosen = "--best_of=3", f"--discriminator={discriminator}"
    first, best, every = answers(), answers(*chosen), answers(*chosen, "--all")
    q, judge = Alone(generator), Alone(discriminator)
    how = Sampling(6, q.tokenizer.eos_ids, q.tokenizer.pad_id, 0.7)
    wanted, scores = [], np.zeros((len(QUESTIONS), 3))
    for number, row in enumerate(first):
        prompt = q.tokenizer.prompt_ids(row["content"])
        draws = q.draws(row["content"], how, jax.random.fold_in(jax.random.key(5), number), range(3))
        assert row["response"] == q.tokenizer.decode(draws[0])  # the answer without --best_of
        for place, draw in enumerate(draws):
            if kind == "score":
                scores[number, place] = judge.score(prompt, draw)
            else:
                scores[number, place] = judge.nats(prompt, draw, 1.0) - q.nats(prompt, draw, 0.7)
            reason = "stop" if draw[-1] in how.eos_ids else "length"
            wanted.append((row["id"], q.tokenizer.decode(draw), reason, len(draw)))
    fields = "id", "response", "finish_reason", "tokens"
    assert [tuple(row[name] for name in fields) for row in every] == wanted
    np.testing.assert_allclose([row["score"] for row in every], scores.reshape(-1), rtol=1e-4, atol=1e-4)
    places = scores.argmax(axis=1)
    assert [row["best"] for row in every] == [n == place for place in places for n in range(3)]
    assert places.any()  # the first draw is not always the best
    assert best == [{k: v for k, v in row.items() if k != "best"} for row in every if row["best"]]
    means = r"mean score (\S+), of all draws (\S+): .*/o\.jsonl\n"
    found = re.fullmatch("9 answers, each the best of 3: " + means, said[1][0])
    np.testing.assert_allclose([*map(float, found.groups())], [scores.max(axis=1).mean(), scores.mean()], rtol=1e-2)
    assert re.fullmatch("27 answers, 3 to each prompt; of the best: " + means, said[2][0])
    assert "generating 9/9" in said[1][1] and "scoring 27/27" in said[1][1]


def test_the_default_limit_is_what_fits(command, generator, prompts, tmp_path):
    """The model has 128 positions; the default asks for 512 tokens."""
    out = tmp_path / "o.jsonl"
    done = command("gadjax.generate", f"--model={generator}", f"--prompts={prompts}", f"--out={out}")
    assert done.status == 0, done.err
    lines = read(out)
    assert len(lines) == len(QUESTIONS)
    assert all(line["tokens"] < 128 and (line["finish_reason"] == "stop" or line["tokens"] > 64) for line in lines)


BEST = {"best_of": "8", "discriminator": "{discriminator}"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"prompts": "{tmp}/absent.jsonl"}, "--prompts=.*absent.jsonl: no such file"),
        ({"prompts": "{tmp}/p.xlsx"}, r"p\.xlsx: expected a file that ends in \.parquet"),
        ({"prompts": "{tmp}/broken.jsonl"}, "broken.jsonl:1: not JSON"),
        ({"prompts": "{tmp}/empty.jsonl"}, "empty.jsonl: the file holds no prompts"),
        ({"out": "{tmp}/absent/o.jsonl"}, "--out=.*absent/o.jsonl: there is no folder .*absent; make it first"),
        ({"out": "{tmp}"}, "--out=.* is a folder; give the name of a file"),
        ({"model": "{tmp}/absent"}, "absent: no such directory"),
        ({"model": "{discriminator}"}, "is a LlamaForTokenClassification, but this command needs a causal language"),
        ({"temperature": "-1"}, "temperature"),
        ({"top_p": "1.5"}, "top_p"),
        ({"max_response_length": "0"}, "max_response_length"),
        ({"max_response_length": "120"}, "max_position_embeddings is 128, but sequences may reach"),
        ({"dtype": "float16"}, "dtype"),
        ({"best_of": "0"}, "best_of"),
        ({"best_of": "8"}, "--best_of=8 needs --discriminator=DIR"),
        ({"discriminator": "{discriminator}"}, "--discriminator chooses among several answers .* give --best_of=2"),
        ({"all": "true"}, "--all writes all answers of --best_of, but there is one"),
        (BEST | {"temperature": "0"}, "--best_of=8 with --temperature=0: all answers to a prompt would be the same"),
        (BEST | {"top_k": "1"}, "--best_of=8 with --top_k=1"),
        (BEST | {"top_p": "0"}, "--best_of=8 with --top_p=0"),
        (BEST | {"discriminator": "{tmp}/absent"}, "absent: no such directory"),
        (BEST | {"discriminator": "{other}"}, "--discriminator=.*/other has another tokenizer than --model=.*/gen"),
        (BEST | {"discriminator": "{short}"}, "short, the longest prompt with its response: max_position_embeddings"),
        (BEST | {"model": "{discriminator}"}, "--model=.*discriminator is a LlamaForTokenClassification"),
    ],
)
def test_mistakes(command, generator, prompts, tmp_path, misfits, monkeypatch, flags, message):
    monkeypatch.setattr(CheckedNetwork, "load", lambda *_, **__: pytest.fail("weights were read"))
    (tmp_path / "p.xlsx").write_text("no rows")
    (tmp_path / "broken.jsonl").write_text("{nothing")
    (tmp_path / "empty.jsonl").write_text("\n")
    given = {"model": generator, "prompts": prompts, "out": tmp_path / "o.jsonl"} | flags
    places = misfits | {"tmp": tmp_path, "discriminator": generator.with_name("discriminator")}
    done = command("gadjax.generate", *(f"--{name}={str(value).format(**places)}" for name, value in given.items()))
    assert done.status == 2
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(message, errors[0]), errors[0]
    assert not list(tmp_path.glob("o.jsonl*"))
