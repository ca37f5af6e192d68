"""python -m gadjax.score: the discriminator as a reward model."""

from __future__ import annotations

import json
import pathlib
import re
import shutil
import sys
import types

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gadjax.errors import UserError
from gadjax.rollout.chat_model import CheckedNetwork
from gadjax.score import ScoredRow, read_answers
from tests.evaluation.alone import Alone

pytestmark = pytest.mark.usefixtures("one_device", "quick_compile")

ROWS = [
    {"id": 7, "prompt": "What is one plus two", "response": "three"},
    {"prompt": "What is two plus two and then some more", "response": "four", "finish_reason": "length"},
    {"prompt": "one", "response": "five six seven eight nine", "finish_reason": "stop"},
    {"content": [{"role": "system", "content": "s"}, {"role": "user", "content": "two"}], "response": ""},
    {"prompt": "two", "response": "one <|im_end|> two"},
]


@pytest.fixture(scope="module")
def discriminator(finished_run) -> pathlib.Path:
    return finished_run.workdir / "export" / "discriminator"


@pytest.fixture
def data(tmp_path) -> pathlib.Path:
    file = tmp_path / "answers.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    return file


def scores(out: pathlib.Path) -> list[float]:
    return [json.loads(line)["score"] for line in out.read_text().splitlines()]


def by_hand(discriminator: pathlib.Path, answers: list[ScoredRow]) -> list[float]:
    """Scores one sequence at a time, with the head at the last token."""
    alone = Alone(discriminator)
    return [alone.score(*ids_of(alone, answer)) for answer in answers]


def ids_of(alone: Alone, answer: ScoredRow) -> tuple[np.ndarray, np.ndarray]:
    tokenizer = alone.tokenizer
    return tokenizer.prompt_ids(answer.content), tokenizer.response_ids(answer.response, answer.ended)


def test_scores(command, discriminator, data, tmp_path):
    out = tmp_path / "scores.jsonl"
    done = command("gadjax.score", f"--model={discriminator}", f"--data={data}", f"--out={out}", "--batch_size=2")
    assert done.status == 0, done.err
    assert done.out.startswith("5 scores, mean ")
    answers, _ = read_answers(data)
    np.testing.assert_allclose(scores(out), by_hand(discriminator, answers), atol=1e-5)
    assert len(set(scores(out))) == 5
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["response"] for line in lines] == [row["response"] for row in ROWS]
    assert lines[0]["id"] == "7" and not any("id" in line for line in lines[1:])
    assert lines[0]["content"] == [{"role": "user", "content": "What is one plus two"}]
    whole = tmp_path / "whole.jsonl"
    assert command("gadjax.score", f"--model={discriminator}", f"--data={data}", f"--out={whole}").status == 0
    np.testing.assert_allclose(scores(whole), scores(out), atol=1e-5)


def test_progress_shows_before_the_first_score(command, data, tmp_path, monkeypatch):
    class Tokenizer:
        def prompt_ids_batch(self, chats):
            print("encoding", file=sys.stderr)
            raise UserError("that is all")

    network = types.SimpleNamespace(head="score", tokenizer=Tokenizer())
    monkeypatch.setattr("gadjax.rollout.chat_model.check_network", lambda *_, **__: network)
    done = command("gadjax.score", "--model=m", f"--data={data}", f"--out={tmp_path / 'o.jsonl'}")
    assert done.err == f"scoring 0/{len(ROWS)}, ? left\nencoding\nerror: that is all\n"


def test_transformers_agrees(command, discriminator, data, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)
    out = tmp_path / "scores.jsonl"
    assert command("gadjax.score", f"--model={discriminator}", f"--data={data}", f"--out={out}").status == 0
    tokenizer = transformers.AutoTokenizer.from_pretrained(discriminator)
    network = transformers.AutoModelForTokenClassification.from_pretrained(discriminator, dtype=torch.float32).eval()
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is one plus two"}], add_generation_prompt=True, tokenize=False
    )
    ids = tokenizer(text + "three<|im_end|>", add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        assert scores(out)[0] == pytest.approx(float(network(**ids).logits[0, -1, 0]), abs=1e-4)


def test_a_discriminator_of_mean_values(command, discriminator, data, tmp_path):
    """Its config.json says so, as an export of a run with config.discriminator.pooling=mean."""
    copy, out = tmp_path / "copy", tmp_path / "scores.jsonl"
    shutil.copytree(discriminator, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"gadjax_pooling": "mean"}))
    assert command("gadjax.score", f"--model={copy}", f"--data={data}", f"--out={out}").status == 0
    alone = Alone(copy)
    expected = [alone.score(*ids_of(alone, answer), "mean") for answer in read_answers(data)[0]]
    np.testing.assert_allclose(scores(out), expected, atol=1e-5)


@pytest.mark.parametrize("flags", [["--temperature=0.5", "--max_response_length=3"], []])
def test_a_likelihood_discriminator(command, discriminator, other_student, data, tmp_path, flags):
    """Against both models, one sequence at a time; by default the generator is at temperature 0.8."""
    generator, out = discriminator.with_name("generator"), tmp_path / "scores.jsonl"
    given = [f"--model={other_student}", f"--generator={generator}", f"--data={data}", f"--out={out}"]
    done = command("gadjax.score", *given, "--batch_size=2", *flags)
    assert done.status == 0, done.err
    assert f"scoring {2 * len(ROWS)}/{2 * len(ROWS)}" in done.err
    phi, q = Alone(other_student), Alone(generator)
    expected = []
    for answer in read_answers(data)[0]:
        prompt, response = ids_of(phi, answer)
        response = response[:3] if flags else response
        expected.append(phi.nats(prompt, response, 1.0) - q.nats(prompt, response, 0.5 if flags else 0.8))
    np.testing.assert_allclose(scores(out), expected, rtol=1e-4, atol=1e-4)
    assert len(set(scores(out))) == 5


def test_responses_cut_as_in_the_run(command, discriminator, data, tmp_path):
    out = tmp_path / "scores.jsonl"
    arguments = f"--model={discriminator}", f"--data={data}", f"--out={out}", "--max_response_length=1"
    assert command("gadjax.score", *arguments).status == 0
    # The first id of "three" is "t"; an empty response keeps its end.
    cut = [
        ScoredRow([{"role": "user", "content": ROWS[0]["prompt"]}], "t", False),
        ScoredRow(ROWS[3]["content"], "", True),
    ]
    np.testing.assert_allclose([scores(out)[0], scores(out)[3]], by_hand(discriminator, cut), atol=1e-5)


def test_teacher_data(command, discriminator, heldout_file, tmp_path):
    out = tmp_path / "scores.jsonl"
    done = command("gadjax.score", f"--model={discriminator}", f"--data={heldout_file}", f"--out={out}")
    assert done.status == 0, done.err
    assert len(scores(out)) == 8
    np.testing.assert_allclose(scores(out), by_hand(discriminator, read_answers(heldout_file)[0]), atol=1e-5)


def test_many_answers_to_one_prompt(command, discriminator, tmp_path):
    """Two outputs of gadjax.generate in one file have each id twice."""
    data, out = tmp_path / "answers.jsonl", tmp_path / "scores.jsonl"
    rows = [{"id": "a", "prompt": "one", "response": text, "finish_reason": "stop"} for text in ("two", "three")]
    data.write_text("\n".join(map(json.dumps, rows)))
    done = command("gadjax.score", f"--model={discriminator}", f"--data={data}", f"--out={out}")
    assert done.status == 0, done.err
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == ["a", "a"]
    assert len(set(scores(out))) == 2


REASONS = ["stop", "length", "refusal", "content_filter", "length", None]
ANSWERS = ["x", "y", "I cannot.", "", "", "z"]
LEFT = [
    ScoredRow([{"role": "user", "content": "a"}], text, text != "y", id) for text, id in zip("xyz", "015", strict=True)
]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_rows_without_an_answer_are_left_out_and_counted(command, discriminator, tmp_path, kind):
    data = tmp_path / f"t.{kind}"
    chat = [{"role": "user", "content": "a"}]
    if kind == "jsonl":
        rows = zip(ANSWERS, REASONS, strict=True)
        lines = [{"id": i, "content": chat, "response": a, "finish_reason": r} for i, (a, r) in enumerate(rows)]
        data.write_text("\n".join(map(json.dumps, lines)))
    else:
        columns = {"content": [chat] * 6, "teacher_response": ANSWERS, "finish_reason": REASONS, "id": list(range(6))}
        pq.write_table(pa.table(columns), data)
    assert read_answers(data) == (LEFT, 3)
    done = command("gadjax.score", f"--model={discriminator}", f"--data={data}", f"--out={tmp_path / 'o.jsonl'}")
    assert re.fullmatch(r"3 scores, mean \S+ \(3 rows without an answer are left out\): .*\n", done.out), done.err
    assert [json.loads(line)["id"] for line in (tmp_path / "o.jsonl").read_text().splitlines()] == ["0", "1", "5"]


def test_answers_of_other_formats(tmp_path):
    """Several answers to a prompt are scored each; what a row calls `response` goes first."""
    chat = [{"role": "user", "content": "a"}]
    rows = [
        {"messages": [*chat, {"role": "assistant", "content": "x"}], "id": 1},
        {"question": "a", "answer": "x", "id": 1},
        {"prompt": "a", "completion": ["x", "y"], "id": 1, "finish_reason": "length"},
        {"prompt": "a", "completion": "z", "response": "x", "id": 1},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    answers = [("x", True), ("x", True), ("x", False), ("y", False), ("x", True)]
    expected = [ScoredRow(chat, text, ended, "1") for text, ended in answers]
    assert read_answers(tmp_path / "a.jsonl") == (expected, 0)
    pq.write_table(pa.Table.from_pylist(rows[:1]), tmp_path / "b.parquet")
    assert read_answers(tmp_path / "b.parquet") == (expected[:1], 0)
    assert read_answers(tmp_path) == (expected + expected[:1], 0)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.pdf", "", r"--data=.*a\.pdf: expected a file that ends in \.parquet"),
        ("absent.jsonl", None, r"--data=.*absent\.jsonl: no such file"),
        ("a.jsonl", "", r"--data=.*a\.jsonl: the file has no rows to score"),
        ("a.jsonl", '{"prompt": "a", "response": 3}', r"a\.jsonl:1: `response` is int; expected text"),
        ("a.jsonl", '\n{"prompt": "a"}', r"a\.jsonl:2: `response` is missing; expected text"),
        ("a.jsonl", '{"prompt": "a", "response": "\\udc00"}', r"a\.jsonl:1: `response` holds half of a surrogate pair"),
        ("a.jsonl", '{"response": "a"}', r"a\.jsonl:1: neither `prompt` nor `content`"),
        ("a.jsonl", '{"prompt": "a", "response": "", "finish_reason": "length"}', "no row to score: all 1 are"),
        ("a.parquet", "text", r"a\.parquet: not a Parquet file"),
    ],
)
def test_bad_data(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_answers(tmp_path / name)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--model={generator}", r"--model=.*/generator is a causal language model, .*: give --generator=DIR too"),
        ("--generator={generator}", "--generator is of the likelihood kind, but --model=.* is a token classifier"),
        ("--temperature=0.7", "--temperature is of the likelihood kind"),
        ("--temperature=0", "--temperature=0: expected the temperature above 0"),
        (
            "--model={generator} --generator={other}",
            "--model=.*/generator has another tokenizer than --generator=.*other",
        ),
        (
            "--model={generator} --generator={discriminator}",
            "--generator=.* is a LlamaForTokenClassification, but this",
        ),
        ("--model={generator} --generator={short}", "prompt and response of --data: max_position_embeddings is 16"),
        ("--out={tmp}/absent/o.jsonl", "--out=.*cannot be written"),
        ("--data={tmp}/long.jsonl", r"longest prompt and response of --data: max_position_embeddings is 128"),
    ],
)
def test_mistakes(command, discriminator, data, tmp_path, misfits, monkeypatch, flag, message):
    """They are refused before weights are read."""
    (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": "two " * 200, "response": "x"}))
    monkeypatch.setattr(CheckedNetwork, "load", lambda *_, **__: pytest.fail("weights were read"))
    flag = flag.format(
        tmp=tmp_path, discriminator=discriminator, generator=discriminator.with_name("generator"), **misfits
    )
    flags = [f"--model={discriminator}", f"--data={data}", f"--out={tmp_path / 'o.jsonl'}", *flag.split()]
    done = command("gadjax.score", *flags)
    assert done.status == 2
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and re.search(message, errors[0]), done.err
    assert not list(tmp_path.glob("o.jsonl*"))
