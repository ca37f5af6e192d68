"""A model with its tokenizer, loaded from an export."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from gadjax.errors import UserError
from gadjax.rollout import chat_model as module
from gadjax.rollout.chat_model import as_reply, check_network, load_network

pytestmark = pytest.mark.usefixtures("quick_compile", "one_device", "shared_programs")

CHATS = [[{"role": "user", "content": f"What is {word} plus one"}] for word in ("two", "three", "four")]


@pytest.fixture(scope="module")
def chat_model(finished_run, one_device, quick_compile, shared_programs):
    network = load_network(str(finished_run.workdir / "export" / "generator"), "lm")
    return module.chat_model(network, batch_size=64)


def test_sampling_ends_as_the_tokenizer_says(chat_model):
    sampling = chat_model.sampling(max_response_length=4, temperature=0.5, top_k=3)
    assert sampling.eos_ids == chat_model.tokenizer.eos_ids
    assert (sampling.max_response_length, sampling.temperature, sampling.top_k) == (4, 0.5, 3)


def test_answers(chat_model):
    sampling = chat_model.sampling(max_response_length=6)
    replies = chat_model.answer(CHATS, sampling, seed=1)
    prompts = [chat_model.tokenizer.prompt_ids(chat) for chat in CHATS]
    raw = chat_model.engine.generate(chat_model.params, prompts, sampling, seed=1)
    for reply, answer in zip(replies, raw, strict=True):
        assert reply.text == chat_model.tokenizer.decode(answer.tokens)
        assert "<|im_end|>" not in reply.text
        assert (reply.tokens, reply.ended) == (len(answer.tokens), answer.ended)


def test_several_replies(chat_model):
    """The first is that of `answer`, whatever their number."""
    sampling = chat_model.sampling(max_response_length=6)
    groups = chat_model.complete(CHATS, sampling, 3, seed=1)
    assert [len(group) for group in groups] == [3] * len(CHATS)
    first = [as_reply(chat_model.tokenizer, group[0]) for group in groups]
    assert first == chat_model.answer(CHATS, sampling, seed=1)


def test_a_chat_longer_than_the_model(chat_model):
    long = [[{"role": "user", "content": "two " * 130}]]
    with pytest.raises(UserError, match=r"longest prompt .*: max_position_embeddings is 128, but sequences may reach"):
        chat_model.answer(long, chat_model.sampling(max_response_length=6))


def test_replies_that_fit_the_model(chat_model):
    """Each chat has its own limit: a long chat beside it changes no reply."""
    room = 128
    chats = [*CHATS, [{"role": "user", "content": "two " * 55}]]
    lengths = [len(ids) for ids in chat_model.tokenizer.prompt_ids_batch(chats)]
    assert 40 < max(lengths) < room
    sampling = dataclasses.replace(chat_model.sampling(max_response_length=500), eos_ids=())  # none ends by itself
    replies = chat_model.answer(chats, sampling, seed=1, fit=True)
    for number, (length, reply) in enumerate(zip(lengths, replies, strict=True)):
        exact = dataclasses.replace(sampling, max_response_length=room - length)
        assert reply == chat_model.answer(chats[: number + 1], exact, seed=1, fit=True)[number]
        assert (reply.tokens, reply.ended) == (room - length, False)
    with pytest.raises(UserError, match=r"max_position_embeddings is 128, .* or lower --max_response_length$"):
        chat_model.answer(chats, sampling)
    # What fits anyway is not made shorter.
    short = chat_model.sampling(max_response_length=6)
    assert chat_model.answer(CHATS, short, fit=True) == chat_model.answer(CHATS, short)


@pytest.mark.parametrize(("network", "head"), [("discriminator", "lm"), ("generator", "score")])
def test_the_other_kind_of_model(finished_run, network, head):
    with pytest.raises(UserError, match=r"--model=.* is a Llama.*, but this command needs a"):
        load_network(str(finished_run.workdir / "export" / network), head)


def test_a_check_reads_no_weights(finished_run, monkeypatch):
    export = finished_run.workdir / "export"
    monkeypatch.setattr(module, "load_params", lambda *_, **__: pytest.fail("weights were read"))
    for network, head in (("discriminator", "score"), ("generator", "lm")):
        checked = check_network(str(export / network), "score", "lm", flag="--it")
        assert (checked.head, checked.name) == (head, f"--it={export / network}")
    with pytest.raises(UserError, match=r"^--model=.*discriminator is a Llama.*, but this command needs a causal"):
        check_network(str(export / "discriminator"), "lm")


def test_dtype(finished_run):
    network = load_network(str(finished_run.workdir / "export" / "discriminator"), "score", dtype="bfloat16")
    assert network.model.config.dtype == network.params["score"]["kernel"].dtype == "bfloat16"


def test_a_reply_that_grows(chat_model):
    """Its end is the answer's; what comes before begins it."""
    alone = module.chat_model(
        module.Network(chat_model.model, chat_model.params, chat_model.tokenizer, chat_model.engine.mesh), 1
    )
    sampling = chat_model.sampling(max_response_length=40)
    replies = list(alone.stream(CHATS[0], sampling, seed=3))
    assert replies[-1] == alone.answer([CHATS[0]], sampling, seed=3)[0]
    assert len(replies) > 1 and all(replies[-1].text.startswith(reply.text) for reply in replies)
    assert [reply.ended for reply in replies[:-1]] == [False] * (len(replies) - 1)


def test_half_a_character_is_not_shown(chat_model, monkeypatch):
    """But one that the whole reply ends with is."""
    sampling = chat_model.sampling(max_response_length=3)
    texts = iter(["a\ufffd", "a\u00e4\ufffd\ufffd", "a\u00e4\ufffd"])
    grown = [(module.Completion(np.zeros(n, np.int32), np.zeros(n), False), n == 3) for n in (1, 2, 3)]
    monkeypatch.setattr(type(chat_model.engine), "growing", lambda *_, **__: iter(grown))
    monkeypatch.setattr(module.ChatTokenizer, "decode", lambda *_: next(texts))
    assert [reply.text for reply in chat_model.stream(CHATS[0], sampling)] == ["a", "a\u00e4", "a\u00e4\ufffd"]


def test_replies_as_they_end(chat_model):
    """They are those of `complete`, each with the limit of its own chat."""
    chats = [*CHATS, [{"role": "user", "content": "two " * 55}]]
    sampling = chat_model.sampling(max_response_length=100)
    expected = chat_model.complete(chats, sampling, 2, seed=1, fit=True)
    found = dict(chat_model.complete_as_they_end(chats, sampling, 2, seed=1, fit=True))
    rest = dict(chat_model.complete_as_they_end(chats, sampling, 2, seed=1, fit=True, kept={0, 3}))
    assert sorted(found) == [0, 1, 2, 3] and sorted(rest) == [1, 2]
    for place, group in (found | rest).items():
        assert [one.tokens.tolist() for one in group] == [one.tokens.tolist() for one in expected[place]]
