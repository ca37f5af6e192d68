"""Scores in batches are those of one sequence at a time; a discriminator that reads other tokens is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from gadjax.errors import UserError
from gadjax.evaluation import scoring
from gadjax.rollout.chat_model import check_network
from tests.evaluation.alone import Alone

pytestmark = pytest.mark.usefixtures("one_device", "quick_compile")

CHATS = [[{"role": "user", "content": text}] for text in ("one", "What is two plus two", "six seven eight nine", "two")]
RESPONSES = [[40, 50, 2], [60, 2], [7] * 9, [41, 42, 43, 44, 45, 2]]


@pytest.fixture(scope="module")
def prompts(other_student) -> list[np.ndarray]:
    return Alone(other_student).tokenizer.prompt_ids_batch(CHATS)


@pytest.mark.parametrize(("batch_size", "pooling"), [(1, "last"), (3, "last"), (4, "last"), (3, "mean")])
def test_scores(finished_run, prompts, batch_size, pooling):
    """The last batch of three is not full, and sequences are of several lengths."""
    export = finished_run.workdir / "export" / "discriminator"
    model, params, _, mesh = check_network(str(export), "score").load()
    counts: list[int] = []
    options = {"batch_size": batch_size, "done": counts.append}
    found = scoring.sequence_values(model, params, mesh, prompts, RESPONSES, pooling=pooling, **options)
    alone = Alone(export)
    expected = [alone.score(*one, pooling) for one in zip(prompts, RESPONSES, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert counts[-1] == 4 and len(counts) == -(-4 // batch_size) and len(set(expected)) == 4


@pytest.mark.parametrize("decodes", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_likelihoods(other_student, prompts, temperature, decodes):
    model, params, _, mesh = check_network(str(other_student), "lm").load(decodes=decodes)
    options = {"temperature": temperature, "batch_size": 3}
    found = scoring.sequence_values(model, params, mesh, prompts, RESPONSES, **options)
    alone = Alone(other_student)
    expected = [alone.nats(*one, temperature) for one in zip(prompts, RESPONSES, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    tokens = scoring.token_nats(model, params, mesh, prompts, RESPONSES, **options)
    for prompt, response, nats in zip(prompts, RESPONSES, tokens, strict=True):
        starts = [alone.nats(prompt, response[:length], temperature) for length in range(1, len(response) + 1)]
        np.testing.assert_allclose(nats, np.diff([0.0, *starts]), rtol=1e-4, atol=1e-5)


def test_on_all_devices(all_devices, finished_run, other_student, prompts):
    """Eight devices share a batch of four: rows are filled up."""
    for directory, head in ((finished_run.workdir / "export" / "discriminator", "score"), (other_student, "lm")):
        model, params, _, mesh = check_network(str(directory), head).load(decodes=False)
        assert mesh.size == 8
        found = scoring.sequence_values(model, params, mesh, prompts, RESPONSES, batch_size=4)
        alone = Alone(directory)
        one = alone.score if head == "score" else lambda *ids, alone=alone: alone.nats(*ids, 1.0)
        expected = [one(*ids) for ids in zip(prompts, RESPONSES, strict=True)]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_likelihood_is_compared_with_the_generators():
    values, nats = np.array([-3.0, -5.0]), np.array([-4.0, -5.5])
    assert scoring.as_scores("score", values, None).tolist() == [-3.0, -5.0]
    assert scoring.as_scores("lm", values, nats).tolist() == [1.0, 0.5]


def test_another_tokenizer_is_refused(other_student, write_tokenizer, tmp_path):
    own = Alone(other_student).tokenizer
    scoring.check_tokenizers(own, Alone(other_student).tokenizer, CHATS, ("m", "d"))
    write_tokenizer(tmp_path, ["quite", "other", "words"])
    from gadjax.data.tokenizer import load_tokenizer

    with pytest.raises(UserError, match=r"^d has another tokenizer than m: a discriminator reads the tokens that the"):
        scoring.check_tokenizers(own, load_tokenizer(tmp_path), CHATS, ("m", "d"))


def test_another_template_is_refused(student, tmp_path):
    """Only where it shows: prompts that both templates render alike are read alike."""
    from gadjax.data.tokenizer import load_tokenizer

    copy = tmp_path / "copy"
    shutil.copytree(student, copy)
    template = (copy / "chat_template.jinja").read_text()
    (copy / "chat_template.jinja").write_text("{% if messages[0].content == 'two' %}two{% endif %}" + template)
    own, changed = load_tokenizer(student), load_tokenizer(copy)
    scoring.check_tokenizers(own, changed, CHATS[:3], ("m", "d"))
    with pytest.raises(UserError, match=r"^d has another chat template than m: row 4 has other tokens; put the same"):
        scoring.check_tokenizers(own, changed, CHATS, ("m", "d"), "row")


def test_ids_that_the_discriminator_lacks(other_student):
    size = json.loads((other_student / "config.json").read_text())["vocab_size"]
    config = Alone(other_student).model.config
    scoring.check_ids(config, [[1], [size - 1]], "d")
    with pytest.raises(UserError, match=f"^d has {size} token ids, but an answer holds id {size}, which it cannot"):
        scoring.check_ids(config, [[1], [size]], "d")
