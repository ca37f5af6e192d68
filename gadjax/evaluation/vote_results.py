"""People's votes in `results.json`: a tree of dataclasses, as in `gadjax.evaluation.results`."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Interval:
    """A figure with its 95 % bootstrap interval over prompts."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Voter:
    """A person, and the number of votes that count."""

    name: str
    votes: int


@dataclasses.dataclass(frozen=True)
class HumanComparison:
    """People's votes on the answers of two models.

    Attributes:
      prompt_set: name of the set, or None for all sets together.
      a, b: names of the models.
      win, tie, lose: numbers of votes by which `a`'s answer is better, as good and worse.
      win_share, tie_share, lose_share: those as shares of all votes.
      margin: `win_share` minus `lose_share`.
      prompts: number of different prompts.
      p: of the sign test over prompts; a prompt counts for the model that more people prefer.
      test: what the test is.
    """

    prompt_set: str | None
    a: str
    b: str
    win: int
    tie: int
    lose: int
    win_share: Interval
    tie_share: Interval
    lose_share: Interval
    margin: Interval
    prompts: int
    p: float
    test: str


@dataclasses.dataclass(frozen=True)
class PeopleAgreement:
    """How far people agree on the same two answers.

    Attributes:
      share: of two people's votes on the same two answers that are equal.
      alpha: Krippendorff's, nominal; None if all votes are equal.
      pairs: number of pairs of votes that were compared.
      questions: number of pairs of answers with two votes or more.
    """

    share: Interval
    alpha: float | None
    pairs: int
    questions: int


@dataclasses.dataclass(frozen=True)
class JudgeAgreement:
    """How far the judge agrees with people's votes; it prefers the answer that it scores higher.

    Attributes:
      share: of votes that are as the judge's; a guess would agree with a third.
      votes: number of votes on answers that the judge judged.
      decided_share: the same among the votes where neither the person nor the judge says tie; a guess: a half.
      decided: their number.
    """

    share: Interval
    votes: int
    decided_share: Interval | None
    decided: int


@dataclasses.dataclass(frozen=True)
class HumanVotes:
    """All votes; `agreement` is None if no two answers have two votes, `judge` if the judge has no verdicts on them."""

    fingerprint: str
    voters: list[Voter]
    comparisons: list[HumanComparison]
    agreement: PeopleAgreement | None
    judge: JudgeAgreement | None
