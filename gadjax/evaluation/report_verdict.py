"""The report's verdict in words: which model is better at what, by how much, or that nothing can be told.

For each measure the leading model is held against every other one. Where the difference on the same prompts has a 95 %
interval (judge, people), it must not hold 0. Elsewhere the two models' own intervals must not overlap, which asks for
more. With fewer than `LEAST` prompts a bootstrap's interval is too narrow, so that nothing is told.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from gadjax.evaluation.results import TEACHER
from gadjax.evaluation.svg import number
from gadjax.evaluation.vote_results import HumanVotes

LEAST = 10  # prompts


class Finding(NamedTuple):
    """What a measure says: its title, with the set, and sentences."""

    title: str
    sentences: list[str]


class _Figure(NamedTuple):
    """A model's figure with its interval."""

    name: str
    value: float
    low: float
    high: float

    def text(self, digits: int) -> str:
        return f"{number(self.value, digits)} ({number(self.low, digits)} to {number(self.high, digits)})"


class _Measure(NamedTuple):
    """A figure of `scores`: the less, the better, unless it is the judge's."""

    title: str
    verb: str
    group: str
    figure: str
    digits: int

    @property
    def ends(self) -> tuple[str, str]:
        """Where the ends of the figure's interval are."""
        return (f"{self.figure}_low", f"{self.figure}_high") if self.group == "kl" else ("low", "high")


_JUDGE, _TEST = "judge", "two_sample"
_MEASURES = (
    _Measure("Judge", "is better than", _JUDGE, "score", 1),
    _Measure("Two-sample test", "is harder to tell from the teacher than", _TEST, "accuracy", 3),
    _Measure("Reverse KL", "is closer to the teacher than", "kl", "reverse_per_token", 3),
    _Measure("Forward KL", "is closer to the teacher than", "kl", "forward_per_token", 3),
)


def findings(results: Mapping[str, Any], votes: HumanVotes | None) -> list[Finding]:
    """What can be told of the models, people's votes first.

    Args:
      results: the tree of `results.json` as JSON values.
      votes: people's votes, if there are any.
    """
    found = [Finding("People", _people(votes))] if votes else []
    for measure in _MEASURES:
        for part in results["sets"]:
            sentences = list(_of_set(measure, results, part["name"]))
            if sentences:
                found.append(Finding(f"{measure.title} on {part['name']}", sentences))
    return found


def _people(votes: HumanVotes) -> list[str]:
    pooled = [pair for pair in votes.comparisons if pair.prompt_set is None] or votes.comparisons
    net: dict[str, float] = defaultdict(float)
    for pair in pooled:
        net[pair.a] += pair.margin.value
        net[pair.b] -= pair.margin.value
    leader = max(net, key=lambda name: net[name])
    sentences = []
    for pair in pooled:
        if leader in (pair.a, pair.b):
            sign, other = (1, pair.b) if leader == pair.a else (-1, pair.a)
            margin = [100 * sign * value for value in (pair.margin.value, pair.margin.low, pair.margin.high)]
            what = "of votes, wins minus losses"
            sentences.append(_difference(leader, other, margin, pair.prompts, "is preferred to", f"% {what}", 0))
    return sentences


def _of_set(measure: _Measure, results: Mapping[str, Any], name: str) -> Iterator[str]:
    """The sentences of a measure about a set."""
    scores = results["scores"][name]
    figures = [
        _Figure(model, *(scores[model][measure.group][key] for key in (measure.figure, *measure.ends)))
        for model in (*(model["name"] for model in results["models"]), TEACHER)
        if scores.get(model, {}).get(measure.group)
    ]
    if not figures:
        return
    prompts = {one.name: _prompts(measure, scores[one.name]) for one in figures}
    if len(figures) == 1:
        yield from _alone(measure, figures[0], prompts[figures[0].name])
        return
    leader = (max if measure.group == _JUDGE else min)(figures, key=lambda one: one.value)
    pairs = {(pair["a"], pair["b"]): pair for pair in results["comparisons"].get(name, ())}
    for other in figures:
        if other is leader:
            continue
        sign, pair = 1, pairs.get((leader.name, other.name))
        if pair is None:
            sign, pair = -1, pairs.get((other.name, leader.name))
        if measure.group == _JUDGE and pair and pair["difference"] is not None:
            values = [sign * pair[key] for key in ("difference", "low", "high")]
            count = pair["win"] + pair["tie"] + pair["lose"]
            yield _difference(leader.name, other.name, values, count, measure.verb, "points", measure.digits)
        else:
            yield _apart(measure, leader, other, min(prompts[leader.name], prompts[other.name]))


def _difference(a: str, b: str, values: list[float], prompts: int, verb: str, unit: str, digits: int) -> str:
    """The sentence about a difference with an interval, `a` minus `b`."""
    value, low, high = values[0], min(values[1:]), max(values[1:])
    if high < 0:
        a, b, value, low, high = b, a, -value, -high, -low
    shown = f"{number(value, digits)} {unit} (95 % interval {number(low, digits)} to {number(high, digits)})"
    if low > 0 and prompts >= LEAST:
        return f"{a} {verb} {b} by {shown}."
    return f"Nothing can be told between {a} and {b}: {shown}{_few(prompts)}."


def _apart(measure: _Measure, leader: _Figure, other: _Figure, prompts: int) -> str:
    """The sentence about two figures with intervals of their own."""
    one, two = leader.text(measure.digits), other.text(measure.digits)
    apart = leader.low > other.high or leader.high < other.low
    if apart and prompts >= LEAST:
        return f"{leader.name} {measure.verb} {other.name}: {one} against {two}."
    why = _few(prompts) or ", intervals that overlap"
    return f"Nothing can be told between {leader.name} and {other.name}: {one} and {two}{why}."


def _alone(measure: _Measure, figure: _Figure, prompts: int) -> Iterator[str]:
    """The sentence about a single model, which is held against the reference answers, or the teacher's."""
    words = {
        _JUDGE: (50.0, "is better than the reference answers", "is worse than the reference answers"),
        _TEST: (0.5, "can be told from the teacher", "is told from the teacher less often than by chance"),
    }
    if measure.group not in words:
        return
    parity, above, below = words[measure.group]
    said = above if figure.low > parity else below if figure.high < parity else None
    shown = f"{figure.text(measure.digits)}, where {parity:g} is parity"
    if said and prompts >= LEAST:
        yield f"{figure.name} {said}: {shown}."
    else:
        yield f"Nothing can be told of {figure.name}: {shown}{_few(prompts)}."


def _prompts(measure: _Measure, scores: Mapping[str, Any]) -> int:
    """The number of prompts behind a figure."""
    own = {_JUDGE: "judged", _TEST: "prompts"}.get(measure.group)
    return scores[measure.group][own] if own else scores["prompts"]


def _few(prompts: int) -> str:
    return f", and {prompts} {'prompt is' if prompts == 1 else 'prompts are'} too few" if prompts < LEAST else ""
