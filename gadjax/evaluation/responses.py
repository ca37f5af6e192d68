"""The answers of every model to every set: rows of files, and where they come from."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gadjax.data.prompts import Prompt
from gadjax.data.schema import CUT_REASONS
from gadjax.errors import UserError
from gadjax.evaluation.api import Endpoint, Say, ask_all, key_of
from gadjax.evaluation.prompt_sets import PromptSet, TeacherAnswer
from gadjax.evaluation.result_cache import ResultCache
from gadjax.files import whole_output, writing
from gadjax.progress import ProgressCallback
from gadjax.teacher.protocol import RequestSettings

if TYPE_CHECKING:
    from gadjax.evaluation.cached_model import ResponseTokens
    from gadjax.evaluation.local_models import LocalModel

TOKENS, WORDS = "tokens", "words"


@dataclasses.dataclass(frozen=True)
class Response:
    """A model's answer: its text, why it ended, and its tokens where they are known."""

    text: str
    finish_reason: str | None
    tokens: int | None

    @property
    def cut(self) -> bool:
        """Whether the limit cut it."""
        return self.finish_reason in CUT_REASONS

    def as_answer(self) -> TeacherAnswer:
        """Text and whether it ended."""
        return TeacherAnswer(self.text, not self.cut)


def from_draws(local: LocalModel, draws: Sequence[ResponseTokens]) -> list[Response]:
    """What a model of this machine drew, as text."""
    decode = local.tokenizer.decode
    return [Response(decode(d.tokens), "stop" if d.ended else "length", len(d.tokens)) for d in draws]


def from_teacher(answers: Sequence[TeacherAnswer], tokenizer: Any) -> list[Response]:
    """The teacher's answers, their tokens counted by a tokenizer, or unknown without one."""
    counts: list[int | None] = [None] * len(answers)
    if tokenizer is not None:
        ids = tokenizer.response_ids_batch([a.text for a in answers], [a.ended for a in answers])
        counts = [len(row) for row in ids]
    ends = ("length", "stop")
    return [Response(a.text, ends[a.ended], count) for a, count in zip(answers, counts, strict=True)]


def count_lengths(responses: Sequence[Response], tokenizer: Any, *, own: bool) -> list[int]:
    """Lengths of answers in one unit for all models: a tokenizer's ids, turn end included, or words without one.

    Args:
      tokenizer: that counts; None splits at white space.
      own: whether the answers' own `tokens` are of this tokenizer's vocabulary, and so are what was sampled.
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
      name: of the model, for messages.
      sets: prompts by the set's name.
      limit: tokens of an answer at most.
      seed: sent with every request, where one is given.

    Raises:
      UserError: the API fails, or refuses a prompt: a comparison needs an answer to each.
    """
    sampling = RequestSettings(temperature, 1.0, limit, seed)
    client = endpoint.client(model, sampling)
    keys = {place: [key_of(client, prompt.content) for prompt in prompts] for place, prompts in sets.items()}
    questions = {
        key: prompt.content for place, prompts in sets.items() for key, prompt in zip(keys[place], prompts, strict=True)
    }
    what = f"{name} samples" if temperature else f"{name} answers"
    failures = ask_all(endpoint, model, sampling, questions, cache, what=what, say=say, watch=watch)
    if failures:
        key, reason = next(iter(failures.items()))
        place = next(place for place in sets if key in keys[place])
        first = sets[place][keys[place].index(key)].id
        raise UserError(
            f"{len(failures)} of {len(questions)} prompts got no answer from {name}, the first, {first!r} of {place}, "
            f"for: {reason}; the same command asks them again, or leave them out of the set"
        )
    return {place: [from_row(cache[key]) for key in of_set] for place, of_set in keys.items()}


def write_answers(path: pathlib.Path, prompts: Sequence[Prompt], responses: Sequence[Response]) -> None:
    """JSONL as gadjax.generate writes it, with the prompts' categories; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (
        {
            "id": prompt.id,
            "content": prompt.content,
            **({"category": prompt.category} if prompt.category else {}),
            "response": response.text,
            "finish_reason": response.finish_reason,
            "tokens": response.tokens,
        }
        for prompt, response in zip(prompts, responses, strict=True)
    )
    with whole_output(path) as partial, writing(path):
        partial.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def select(prompts: PromptSet, responses: Sequence[Any]) -> list[Any]:
    """Those of a set's prompts that the teacher has answered."""
    return [responses[i] for i in prompts.answered]


def from_row(row: dict[str, Any]) -> Response:
    """The answer that a cache holds of an API."""
    reason = row["finish_reason"]
    return Response(row["text"], "length" if reason in CUT_REASONS else reason, row.get("completion_tokens"))
