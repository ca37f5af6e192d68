"""python -m gadjax.generate on a real model, against transformers' own greedy generation."""

from __future__ import annotations

import json
import pathlib

import pytest

TOPICS = ("bread", "rain", "Rome", "bees", "chess", "tides", "iron", "sleep", "jazz", "maps")
QUESTIONS = [f"{ask} {topic}?" for topic in TOPICS for ask in ("Why do people care about", "What is the history of")]


@pytest.mark.slow
def test_greedy_text_is_that_of_transformers(command, one_device, smollm2, transformers_greedy, tmp_path):
    """20 prompts, 64 tokens each: identical text."""
    prompts, out = tmp_path / "p.txt", tmp_path / "o.jsonl"
    prompts.write_text("\n".join(QUESTIONS))
    flags = ["--temperature=0", "--max_response_length=64", "--dtype=float32"]
    done = command("gadjax.generate", f"--model={smollm2}", f"--prompts={prompts}", f"--out={out}", *flags)
    assert done.status == 0, done.err
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["content"][0]["content"] for line in lines] == QUESTIONS
    expected = transformers_greedy(pathlib.Path(smollm2), [line["content"] for line in lines], 64)
    assert [line["response"] for line in lines] == [answer.text for answer in expected]
    assert [line["tokens"] for line in lines] == [answer.tokens for answer in expected]
    assert sum(line["tokens"] for line in lines) > 20 * 40
