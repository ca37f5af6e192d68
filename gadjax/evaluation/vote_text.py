"""People's votes as text, for `table.md`, the terminal and the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gadjax.evaluation.svg import number
from gadjax.evaluation.vote_results import HumanComparison, HumanVotes, Interval

ALL_SETS = "all sets"
TITLES = ("win", "tie", "lose", "win − lose")


class Row(NamedTuple):
    """A comparison as text: a (value, interval) for each of `TITLES`, in percent."""

    pair: HumanComparison
    prompt_set: str
    cells: list[tuple[str, str]]
    p: str


def vote_rows(votes: HumanVotes) -> list[Row]:
    """The comparisons of people's votes, as text."""
    return [
        Row(
            one,
            one.prompt_set or ALL_SETS,
            [percent(part) for part in (one.win_share, one.tie_share, one.lose_share, one.margin)],
            "< 0.001" if one.p < 0.001 else f"{one.p:.3f}",
        )
        for one in votes.comparisons
    ]


def vote_sentences(votes: HumanVotes) -> list[str]:
    """Who voted, how far people agree with each other, and the judge with them."""
    count = sum(voter.votes for voter in votes.voters)
    who = ", ".join(f"{voter.name} {voter.votes:,}" for voter in votes.voters)
    people = f"{len(votes.voters)} {'person' if len(votes.voters) == 1 else 'people'}"
    said = [f"{count:,} {'vote' if count == 1 else 'votes'} of {people}, who did not see the models' names: {who}."]
    if found := votes.agreement:
        alpha = "not defined, since all votes are equal" if found.alpha is None else number(found.alpha, 2)
        said.append(
            f"Two people's votes on the same answers are equal in {_shown(found.share)} of {_pairs(found.pairs)} on "
            f"{found.questions:,} pairs of answers; Krippendorff's alpha (1: always, 0: as by chance) is {alpha}."
        )
    elif len(votes.voters) > 1:
        said.append("No two people voted on the same answers, so that nothing is known of their agreement.")
    if judge := votes.judge:
        text = f"The judge agrees with {_shown(judge.share)} of {judge.votes:,} votes (a guess: a third)"
        if judge.decided_share:
            text += f"; without ties of either, with {_shown(judge.decided_share)} of {judge.decided:,} (a guess: half)"
        said.append(f"{text}.")
    return said


def percent(part: Interval) -> tuple[str, str]:
    """A share as text, "60 %", and its interval, "48 to 71"."""
    value, low, high = (number(100 * share, 0) for share in (part.value, part.low, part.high))
    return f"{value} %", f"{low} to {high}"


def vote_cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Titles and cells of a plain table of all comparisons."""
    titles = ["set", "models", "votes", "prompts", *TITLES, "p"]
    cells = [
        [
            row.prompt_set,
            f"{row.pair.a} / {row.pair.b}",
            f"{row.pair.win + row.pair.tie + row.pair.lose:,}",
            f"{row.pair.prompts:,}",
            *(f"{value} [{interval.replace(' to ', ', ')}]" for value, interval in row.cells),
            row.p,
        ]
        for row in rows
    ]
    return titles, cells


def _shown(part: Interval) -> str:
    value, interval = percent(part)
    return f"{value} ({interval})"


def _pairs(count: int) -> str:
    return f"{count:,} {'pair' if count == 1 else 'pairs'} of votes"
