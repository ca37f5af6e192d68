"""Sampling from a real model, whose folder the environment variable GADJAX_SMOLLM2 names."""

from __future__ import annotations

import os
import pathlib

import pytest

TOPICS = ("bread", "rain", "Rome", "bees", "chess", "tides", "iron", "sleep", "jazz", "maps")
QUESTIONS = [f"{ask} {topic}?" for topic in TOPICS for ask in ("Why do people care about", "What is the history of")]


@pytest.mark.slow
def test_greedy_text_is_that_of_transformers(one_device, transformers_greedy):
    """20 prompts, 64 tokens each: identical text."""
    name = os.environ.get("GADJAX_SMOLLM2")
    if not name:
        pytest.skip("GADJAX_SMOLLM2 names no folder of SmolLM2-135M-Instruct")
    from gadjax.rollout.chat_model import load_chat_model

    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    model = load_chat_model(name, dtype="float32", batch_size=len(chats))
    replies = model.answer(chats, model.sampling(max_response_length=64, temperature=0))
    expected = transformers_greedy(pathlib.Path(name), chats, 64)
    assert [reply.text for reply in replies] == [answer.text for answer in expected]
    assert sum(reply.tokens for reply in replies) > 20 * 40
