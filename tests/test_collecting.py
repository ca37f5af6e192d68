"""gadjax.collect in Python; tests/test_collect.py has the command."""

from __future__ import annotations

import asyncio
import pathlib
import re

import pyarrow.parquet as pq
import pytest

import gadjax
from gadjax.errors import UserError
from tests.teacher.fake_server import FakeServer, Reply, error

pytestmark = pytest.mark.quick
QUESTIONS = ["What is one plus four", "What is two plus seven", "What is three plus nine"]


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "key")


@pytest.fixture
def prompts(tmp_path) -> pathlib.Path:
    file = tmp_path / "prompts.txt"
    file.write_text("".join(f"{question}\n" for question in QUESTIONS))
    return file


def test_asks_for_what_is_missing(prompts, tmp_path):
    with FakeServer() as server:
        settings = dict(model="m", base_url=server.base_url, n=2, request_fields={"top_p": None})
        first = gadjax.collect(prompts, tmp_path / "t.parquet", **settings)
        assert (first.asked, first.rows, first.received, first.failures) == (6, 6, 6, {})
        assert "top_p" not in server.requests[0]
        again = gadjax.collect(prompts, tmp_path / "t.parquet", **settings)
        assert (again.rows, again.received, len(server.requests)) == (6, 0, 6)
    rows = pq.read_table(first.out).to_pylist()
    assert {row["teacher_response"] for row in rows} == {f"answer to {question}" for question in QUESTIONS}


def test_in_a_notebook(prompts, tmp_path):
    """A notebook has a running event loop."""

    async def cell(server: FakeServer):
        return gadjax.collect(prompts, tmp_path / "t.parquet", model="m", base_url=server.base_url)

    with FakeServer() as server:
        assert asyncio.run(cell(server)).rows == 3


def test_a_run_that_goes_on_counts_the_money_of_the_run_before_as_that_run_did(prompts, tmp_path, capsys):
    """What was spent and what is set aside for an answer that was lost: at the end of one run, before the next, and at
    its end. An answer of 3 tokens, with its prompt of 7, costs 0.003007."""

    def behave(prompt: str, attempt: int):
        if "three" in prompt:
            return Reply(seconds=1.5) if attempt == 1 else error(400, "no") if attempt == 2 else Reply()
        return Reply()

    settings = dict(model="m", max_tokens=16, input_price=1.0, output_price=1000.0, budget=4.0)
    settings |= dict(max_retries=0, requests_timeout=0.5)
    estimates, ends = [], []
    with FakeServer(behave) as server:
        for _ in range(3):
            gadjax.collect(prompts, tmp_path / "t.parquet", base_url=server.base_url, **settings)
            begun, ended = (line for line in capsys.readouterr().out.splitlines() if line.startswith("cost: "))
            estimates.append(begun)
            ends.append(ended)
    lost = re.search(r", and (\S+) set aside for 1 attempts", ends[0]).group(1)
    assert 0.016 < float(lost) < 0.0163, "all tokens of an answer, and one for each byte of its prompt"
    of_lost = f", and {lost} set aside for 1 attempts of which no answer came, but which may have to be paid for"
    assert ends == [
        f"cost: 0.006014 of --budget=4{of_lost}",
        f"cost: 0.006014 of --budget=4, 0.006014 of it by earlier runs{of_lost}",
        f"cost: 0.009021 of --budget=4, 0.006014 of it by earlier runs{of_lost}",
    ]
    assert "before" not in estimates[0]
    before = f"; 0.006014 spent before; {lost} set aside for earlier requests that may have to be paid for; "
    assert before in estimates[1] and before in estimates[2]


def test_failures_are_returned(prompts, tmp_path):
    def behave(prompt: str, attempt: int):
        return error(400, "no") if "two" in prompt else Reply()

    with FakeServer(behave) as server:
        found = gadjax.collect(prompts, tmp_path / "t.parquet", model="m", base_url=server.base_url)
    assert found.rows == 2 and len(found.failures) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmth": 1}, r"^gadjax\.collect has no setting warmth; there are base_url, .*temperature"),
        ({"publish": "x"}, r"^gadjax\.collect has no setting publish"),
        ({"n": 0}, r"^gadjax\.collect: n=0: 0 is not a positive integer$"),
        ({"n": 1.5}, r"^gadjax\.collect: n=1\.5: "),
        ({"temperature": float("nan")}, r"temperature=nan: expected a finite number"),
        ({"budget": 1.0}, "--budget needs --input_price"),
    ],
)
def test_a_setting_that_is_none(prompts, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        gadjax.collect(prompts, tmp_path / "t.parquet", model="m", **settings)
