"""Files of votes, as `blind.html` saves them: reading them, and refusing what does not belong to an evaluation."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gadjax.errors import UserError
from gadjax.evaluation.blind import FILE, model_key
from gadjax.evaluation.results import TEACHER
from gadjax.files import expand, parse_json

FORMAT = 1  # blind.js writes it
LEFT, RIGHT, TIE = "left", "right", "tie"
_OTHER = "its votes are on the answers of another evaluation"
_SAME = "give the models and sets that were voted on"


class Vote(NamedTuple):
    """A person's vote on the answers of models `a` and `b` to a prompt; `better` is one of them, or None for a tie."""

    voter: str
    prompt_set: str
    id: str
    a: str
    b: str
    better: str | None


@dataclasses.dataclass(frozen=True)
class VotesFile:
    """A file of votes; models in it are keys (`model_key`)."""

    path: str
    voter: str
    fingerprint: str
    votes: list[Mapping[str, str]]

    def refuse_others(self, print_: str) -> None:
        """Refuses votes on other answers than those of this fingerprint.

        Raises:
          UserError: naming the file.
        """
        if self.fingerprint != print_:
            raise UserError(f"{self.path}: {_OTHER}, or they have changed since; vote on this one's {FILE} instead")


def read_votes(paths: Sequence[str | os.PathLike[str]] | str | os.PathLike[str]) -> list[VotesFile]:
    """The files of votes, one a person; a single path is one file.

    Raises:
      UserError: a file cannot be read, is no file of votes, is of a person whose file is there already, or is of other
        answers than the first; the message names the file.
    """
    files: list[VotesFile] = []
    for path in [paths] if isinstance(paths, str | os.PathLike) else paths:
        file = _read(path)
        if other := next((one for one in files if one.voter == file.voter), None):
            both = f"{file.path}: its voter {file.voter!r} is also that of {other.path}"
            raise UserError(f"{both}; give one file a person, or change `voter` in one of them")
        files.append(file)
    for file in files[1:]:
        if file.fingerprint != files[0].fingerprint:
            raise UserError(f"{file.path}: {_OTHER} than those of {files[0].path}; give --votes of one evaluation")
    return files


def resolve(files: Sequence[VotesFile], prompts: Mapping[str, Sequence[str]], models: Sequence[str]) -> list[Vote]:
    """The votes with the models' names.

    Args:
      files: as by `read_votes`.
      prompts: ids of the prompts by set.
      models: names of the evaluation's models.

    Raises:
      UserError: a vote is on a prompt or a model that the evaluation lacks; the message names the file and the vote.
    """
    known = {name: set(ids) for name, ids in prompts.items()}
    found: list[Vote] = []
    for file in files:
        names = {model_key(file.fingerprint, model): model for model in (*models, TEACHER)}
        seen: set[tuple[str, str, frozenset[str]]] = set()
        for number, vote in enumerate(file.votes, start=1):
            place = f"{file.path}: vote {number}"
            if vote["id"] not in known.get(vote["set"], ()):
                what = f"is on prompt {vote['id']!r} of set {vote['set']!r}"
                raise UserError(f"{place} {what}, which this evaluation lacks; {_SAME}")
            sides = {side: names.get(vote[side]) for side in (LEFT, RIGHT)}
            if None in sides.values():
                raise UserError(f"{place} is on a pair of models that this evaluation lacks; {_SAME}")
            if sides[LEFT] == sides[RIGHT]:
                raise UserError(f"{place} is on a pair of one model; save the votes from {FILE} again")
            key = (vote["set"], vote["id"], frozenset(sides.values()))
            if key in seen:
                raise UserError(f"{place} is a second one on the same pair; save the votes from {FILE} again")
            seen.add(key)
            a, b = (name for name in (*models, TEACHER) if name in sides.values())
            found.append(Vote(file.voter, vote["set"], vote["id"], a, b, sides.get(vote["vote"])))
    return found


def _read(path: str | os.PathLike[str]) -> VotesFile:
    place = expand(path)
    try:
        value = parse_json(place.read_text(encoding="utf-8-sig"), constants=False)
    except OSError as error:
        raise UserError(f"--votes={place} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"{place}: not JSON ({error}); save the votes from {FILE} again") from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise UserError(f"{place}: no file of votes of this gadjax; save the votes from {FILE} again")
    for name in ("voter", "fingerprint"):
        if not isinstance(value.get(name), str) or not value[name].strip():
            raise UserError(f"{place}: `{name}` is missing or no text; save the votes from {FILE} again")
    votes = value.get("votes")
    if not isinstance(votes, list) or not votes:
        raise UserError(f"{place}: it holds no votes; vote on {FILE} and save them, or leave the file out")
    for number, vote in enumerate(votes, start=1):
        _check_vote(vote, f"{place}: vote {number}")
    return VotesFile(str(place), " ".join(value["voter"].split()), value["fingerprint"], votes)


def _check_vote(vote: Any, place: str) -> None:
    fields = ("set", "id", LEFT, RIGHT)
    if not isinstance(vote, dict) or not all(isinstance(vote.get(name), str) for name in fields):
        raise UserError(f"{place} lacks one of {', '.join(fields)}; save the votes from {FILE} again")
    if vote.get("vote") not in (LEFT, RIGHT, TIE):
        raise UserError(f"{place}: `vote` is {vote.get('vote')!r}, not {LEFT}, {RIGHT} or {TIE}")
