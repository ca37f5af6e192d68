"""Scores of people's votes: who is preferred, how far people agree, and how far the judge agrees with them.

All intervals are over prompts: a resampled prompt brings all of its votes.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np

from gadjax.evaluation.statistics import SIGN_TEST, krippendorff_alpha, ratio_of_means, sign_test
from gadjax.evaluation.vote_results import HumanComparison, HumanVotes, Interval, JudgeAgreement, PeopleAgreement, Voter
from gadjax.evaluation.votes import Vote

Counted = tuple[Hashable, float, float]  # a prompt, with what adds to the numerator and the denominator of a ratio


def score_votes(
    votes: Sequence[Vote],
    fingerprint: str,
    shares: Mapping[tuple[str, str], Mapping[str, float]],
    *,
    seed: int = 0,
) -> HumanVotes:
    """The scores of people's votes.

    Args:
      votes: at least one, each person's once on a pair of answers.
      fingerprint: of the answers.
      shares: the judge's s / (s + s_ref) by set and model, then by the prompt's id; empty without a judge.
      seed: of the bootstrap.
    """
    sets = list(dict.fromkeys(vote.prompt_set for vote in votes))
    groups: dict[tuple[str | None, str, str], list[Vote]] = defaultdict(list)
    for name in [*sets, *([None] if len(sets) > 1 else [])]:
        for vote in votes:
            if name in (None, vote.prompt_set):
                groups[name, vote.a, vote.b].append(vote)
    voters = Counter(vote.voter for vote in votes)
    return HumanVotes(
        fingerprint=fingerprint,
        voters=[Voter(name, count) for name, count in voters.items()],
        comparisons=[_compare(*key, found, seed) for key, found in groups.items()],
        agreement=_between_people(votes, seed),
        judge=_with_judge(votes, shares, seed),
    )


def _compare(prompt_set: str | None, a: str, b: str, votes: Sequence[Vote], seed: int) -> HumanComparison:
    signs = [(_prompt(vote), {a: 1, b: -1, None: 0}[vote.better]) for vote in votes]
    of_prompt: Counter[Hashable] = Counter()
    for prompt, sign in signs:
        of_prompt[prompt] += sign
    share = lambda wanted: _ratio(((prompt, sign == wanted, 1) for prompt, sign in signs), seed)  # noqa: E731
    return HumanComparison(
        prompt_set,
        a,
        b,
        win=sum(sign > 0 for _, sign in signs),
        tie=sum(sign == 0 for _, sign in signs),
        lose=sum(sign < 0 for _, sign in signs),
        win_share=share(1),
        tie_share=share(0),
        lose_share=share(-1),
        margin=_ratio(((prompt, sign, 1) for prompt, sign in signs), seed),
        prompts=len(of_prompt),
        p=sign_test(sum(net > 0 for net in of_prompt.values()), sum(net < 0 for net in of_prompt.values())),
        test=SIGN_TEST,
    )


def _between_people(votes: Sequence[Vote], seed: int) -> PeopleAgreement | None:
    said: dict[Vote, list[str | None]] = defaultdict(list)
    for vote in votes:
        said[vote._replace(voter="", better=None)].append(vote.better)
    several = {question: answers for question, answers in said.items() if len(answers) > 1}
    if not several:
        return None
    equal = [
        (_prompt(question), one == other, 1)
        for question, answers in several.items()
        for one, other in itertools.combinations(answers, 2)
    ]
    return PeopleAgreement(_ratio(equal, seed), krippendorff_alpha(several.values()), len(equal), len(several))


def _with_judge(
    votes: Sequence[Vote], shares: Mapping[tuple[str, str], Mapping[str, float]], seed: int
) -> JudgeAgreement | None:
    found = []
    for vote in votes:
        of_a, of_b = (shares.get((vote.prompt_set, model), {}).get(vote.id) for model in (vote.a, vote.b))
        if of_a is not None and of_b is not None:
            found.append((vote, vote.a if of_a > of_b else vote.b if of_a < of_b else None))
    if not found:
        return None
    all_of = [(_prompt(vote), vote.better == preferred, 1) for vote, preferred in found]
    decided = [(_prompt(vote), vote.better == preferred, 1) for vote, preferred in found if vote.better and preferred]
    return JudgeAgreement(_ratio(all_of, seed), len(all_of), _ratio(decided, seed) if decided else None, len(decided))


def _ratio(rows: Iterable[Counted], seed: int) -> Interval:
    """The ratio of two sums over votes, with its interval over prompts."""
    sums: dict[Hashable, np.ndarray] = defaultdict(lambda: np.zeros(2))
    for prompt, numerator, denominator in rows:
        sums[prompt] += (numerator, denominator)
    return Interval(*ratio_of_means(*np.array(list(sums.values())).T, seed=seed))


def _prompt(vote: Vote) -> Hashable:
    return vote.prompt_set, vote.id
