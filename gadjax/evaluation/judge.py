"""The paper's judge (`docs/algorithm.md`, section 6): its prompt, its verdicts and the score.

The prompt is that of the Vicuna evaluation, which MiniLLM and the GAD paper use. The verdict's first line holds the
scores of assistant 1 and assistant 2. A hash of seed, set and prompt draws which of the two is the reference, so that
the order is the same for all models.
"""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

import numpy as np

from gadjax.data.chats import Messages
from gadjax.evaluation import statistics
from gadjax.evaluation.results import JudgeScore

LOWEST, HIGHEST = 1, 10
REFERENCE_FIRST, CANDIDATE_FIRST = "reference first", "candidate first"

_SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."
_TASK = """\
We would like to request your feedback on the performance of two AI assistants in response to the user question \
displayed above.
Please rate the helpfulness, relevance, accuracy, level of details of their responses. Each assistant receives an \
overall score on a scale of 1 to 10, where a higher score indicates better overall performance.
Please first output a single line containing only two values indicating the scores for Assistant 1 and 2, \
respectively. The two scores are separated by a space. In the subsequent line, please provide a comprehensive \
explanation of your evaluation, avoiding any potential bias and ensuring that the order in which the responses were \
presented does not affect your judgment."""
_NUMBER = r"([0-9]{1,2}(?:\.[0-9]+)?)"
_SCORES = re.compile(rf"(?:\*\*|`)?(?:scores?:\s*)?{_NUMBER}(?:\s*,\s*|\s+){_NUMBER}\.?(?:\*\*|`)?", re.IGNORECASE)
_NAMES = {"system": "System", "user": "User", "assistant": "Assistant"}


class MalformedVerdict(ValueError):
    """The text of a verdict does not begin with two scores."""


class Verdict(NamedTuple):
    """A judge's scores of a candidate and of the reference beside it, each from 1 to 10."""

    score: float
    reference_score: float

    @property
    def share(self) -> float:
        """s / (s + s_ref)."""
        return self.score / (self.score + self.reference_score)


def order_of(seed: int, prompt_set: str, prompt_id: str) -> str:
    """`REFERENCE_FIRST` or `CANDIDATE_FIRST`, with equal probability."""
    name = f"{seed}\n{prompt_set}\n{prompt_id}"
    return (REFERENCE_FIRST, CANDIDATE_FIRST)[hashlib.sha256(name.encode()).digest()[0] % 2]


def question(chat: Messages, reference: str, candidate: str, order: str) -> Messages:
    """The judge's prompt about two answers to a chat."""
    first, second = (reference, candidate) if order == REFERENCE_FIRST else (candidate, reference)
    text = f"[Question]\n{_shown(chat)}\n\n"
    for number, answer in enumerate((first, second), start=1):
        name = f"Assistant {number}'s Answer"
        text += f"[The Start of {name}]\n{answer}\n\n[The End of {name}]\n\n"
    return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": f"{text}[System]\n{_TASK}"}]


def parse_scores(text: str) -> tuple[float, float]:
    """The scores of assistant 1 and 2 on the first line that is not blank.

    The line must hold two numbers from 1 to 10: "8 9", "8, 9" or "8.5 7". A leading "Scores:", bold or code marks
    around it and a full stop at the end are allowed. All else is malformed, "8/10 9/10" too, since to guess would be to
    make scores up.

    Raises:
      MalformedVerdict: the message quotes the line.
    """
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    found = _SCORES.fullmatch(line)
    if not found:
        raise MalformedVerdict(f"the first line is not two scores: {line[:80]!r}")
    first, second = float(found[1]), float(found[2])
    if not all(LOWEST <= score <= HIGHEST for score in (first, second)):
        raise MalformedVerdict(f"a score is outside {LOWEST} to {HIGHEST}: {line[:80]!r}")
    return first, second


def read_verdict(text: str, order: str) -> Verdict:
    """The verdict in a judge's text, given the order in which the judge saw the answers.

    Raises:
      MalformedVerdict: the text does not begin with two scores.
    """
    first, second = parse_scores(text)
    return Verdict(second, first) if order == REFERENCE_FIRST else Verdict(first, second)


def judge_score(verdicts: list[Verdict], malformed: int, *, seed: int = 0) -> JudgeScore | None:
    """100 · mean(s / (s + s_ref)) with its interval over prompts; None without verdicts.

    Args:
      verdicts: one for each prompt.
      malformed: the number of prompts whose verdict could not be read.
      seed: of the bootstrap.
    """
    if not verdicts:
        return None
    score = statistics.mean(100 * np.array([verdict.share for verdict in verdicts]), seed=seed)
    return JudgeScore(*score, judged=len(verdicts), malformed=malformed)


def _shown(chat: Messages) -> str:
    """A single question as it is; a longer chat with a name before each turn."""
    if len(chat) == 1:
        return chat[0]["content"]
    return "\n\n".join(f"{_NAMES[turn['role']]}: {turn['content']}" for turn in chat)
