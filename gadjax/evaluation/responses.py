"""The answers of models to the prompts of every set: asking an API for them, counting them, writing them to files."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gadjax.data.chats import CUT_REASONS
from gadjax.data.prompts import Prompt
from gadjax.errors import UserError
from gadjax.evaluation.api import Endpoint, Say, ask_all, key_of
from gadjax.evaluation.prompt_sets import PromptSet, Response
from gadjax.evaluation.result_cache import ResultCache
from gadjax.files import whole_output, writing
from gadjax.progress import ProgressCallback
from gadjax.teacher.protocol import RequestSettings

if TYPE_CHECKING:  # an evaluation of API models does without JAX
    from gadjax.data.tokenizer import ChatTokenizer

TOKENS, WORDS = "tokens", "words"


def with_token_counts(answers: Sequence[Response], tokenizer: ChatTokenizer | None) -> list[Response]:
    """The teacher's answers with their numbers of tokens, which stay unknown without a tokenizer."""
    counts = [None] * len(answers) if tokenizer is None else count_lengths(answers, tokenizer, own=False)
    return [dataclasses.replace(answer, tokens=count) for answer, count in zip(answers, counts, strict=True)]


def count_lengths(responses: Sequence[Response], tokenizer: ChatTokenizer | None, *, own: bool) -> list[int]:
    """The answers' lengths in one unit for all models: tokens with the end of the turn, or words without a tokenizer.

    Args:
      responses: the answers.
      tokenizer: counts the tokens; None splits at white space.
      own: whether the answers' `tokens` are already those of this tokenizer.
    """
    if tokenizer is None:
        return [len(response.text.split()) for response in responses]
    if own:
        return [response.tokens for response in responses]
    texts, ended = [response.text for response in responses], [not response.cut for response in responses]
    return [len(ids) for ids in tokenizer.response_ids_batch(texts, ended)]


def ask_api(
    endpoint: Endpoint,
    name: str,
    model: str,
    sets: Mapping[str, Sequence[Prompt]],
    cache: ResultCache,
    *,
    temperature: float,
    limit: int,
    seed: int | None,
    say: Say,
    watch: ProgressCallback,
) -> dict[str, list[Response]]:
    """The answers of a model behind an API to the prompts of each set.

    Args:
      endpoint: where the model is asked.
      name: the model's name in messages.
      model: the API's name of it.
      sets: prompts by set.
      cache: holds the answers so far, and gets the new ones.
      temperature: of the answers; 0 is greedy.
      limit: tokens of an answer, at most.
      seed: sent with every request if it is not None.
      say, watch: get estimates and progress.

    Raises:
      UserError: the API fails, or refuses a prompt: a comparison needs an answer to each.
    """
    sampling = RequestSettings(temperature, 1.0, limit, seed)
    client = endpoint.client(model, sampling)
    keys = {place: [key_of(client, prompt.content) for prompt in prompts] for place, prompts in sets.items()}
    asked = [(place, key, prompt) for place in sets for key, prompt in zip(keys[place], sets[place], strict=True)]
    questions = {key: prompt.content for _, key, prompt in asked}
    what = f"{name} samples" if temperature else f"{name} answers"
    failures = ask_all(endpoint, model, sampling, questions, cache, what=what, say=say, watch=watch)
    if failures:
        place, key, first = next(one for one in asked if one[1] in failures)
        raise UserError(
            f"{len(failures)} of {len(questions)} prompts got no answer from {name}, for example {first.id!r} of "
            f"{place}: {failures[key]}; the same command asks them again, or leave them out of the set"
        )
    return {place: [from_row(cache[key]) for key in of_set] for place, of_set in keys.items()}


def write_answers(path: pathlib.Path, prompts: Sequence[Prompt], responses: Sequence[Response]) -> None:
    """Writes the answers as JSONL, in the form of gadjax.generate with the prompts' categories."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for prompt, response in zip(prompts, responses, strict=True):
        category = {"category": prompt.category} if prompt.category else {}
        answer = {"response": response.text, "finish_reason": response.finish_reason, "tokens": response.tokens}
        rows.append({"id": prompt.id, "content": prompt.content} | category | answer)
    write_jsonl(path, rows)


def write_jsonl(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a file of JSON lines, whole or not at all."""
    with whole_output(path) as partial, writing(path):
        partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def select(prompts: PromptSet, values: Sequence[Any]) -> list[Any]:
    """The values, one a prompt of the set, of the prompts that the teacher answered."""
    return [values[i] for i in prompts.answered]


def from_row(row: dict[str, Any]) -> Response:
    """The answer in a cache's row of an API."""
    reason = row["finish_reason"]
    return Response(row["text"], "length" if reason in CUT_REASONS else reason, row.get("completion_tokens"))
