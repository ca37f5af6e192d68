"""Files of votes: what is read, and one clear line about each kind of fault."""

import json
import re

import pytest

from gadjax.errors import UserError
from gadjax.evaluation.blind import model_key
from gadjax.evaluation.votes import Vote, read_votes, resolve

pytestmark = pytest.mark.quick
PRINT = "0123456789abcdef"
PROMPTS = {"tea": ["1", "2"]}
MODELS = ("x", "y")


def vote(id="1", left="x", right="y", vote="left", **more):
    row = {"set": "tea", "id": id, "left": model_key(PRINT, left), "right": model_key(PRINT, right), "vote": vote}
    return row | more


def write(path, votes, voter="Ann", **more):
    path.write_text(json.dumps({"format": 1, "voter": voter, "fingerprint": PRINT, "votes": votes} | more))
    return path


def test_votes_get_the_models_names(tmp_path):
    """Models are named in the evaluation's order, whichever stood on the left."""
    one = write(tmp_path / "a.json", [vote(), vote(id="2", left="y", right="x", vote="right")])
    two = write(tmp_path / "b.json", [vote(left="y", right="x"), vote(id="2", right="teacher", vote="tie")], "Bob")
    assert resolve(read_votes([one, two]), PROMPTS, MODELS) == [
        Vote("Ann", "tea", "1", "x", "y", "x"),
        Vote("Ann", "tea", "2", "x", "y", "x"),
        Vote("Bob", "tea", "1", "x", "y", "y"),
        Vote("Bob", "tea", "2", "x", "teacher", None),
    ]


def test_a_single_path_is_one_file(tmp_path):
    path = write(tmp_path / "a.json", [vote()])
    assert read_votes(str(path)) == read_votes(path) == read_votes([path])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "--votes=FILE cannot be read: No such file or directory"),
        ("{", "FILE: not JSON (Expecting property name"),
        (b"\xff", "FILE: not JSON ('utf-8' codec"),
        ("[" * 100_000, "FILE: not JSON (nested too deep)"),
        ("[]", "FILE: no file of votes of this gadjax"),
        ({"format": 2}, "FILE: no file of votes of this gadjax"),
        ({"voter": " "}, "FILE: `voter` is missing or no text"),
        ({"fingerprint": 3}, "FILE: `fingerprint` is missing or no text"),
        ({"votes": []}, "FILE: it holds no votes"),
        ({"votes": {}}, "FILE: it holds no votes"),
        ({"votes": [vote(), 3]}, "FILE: vote 2 lacks one of set, id, left, right"),
        ({"votes": [vote(id=3)]}, "FILE: vote 1 lacks one of set, id, left, right"),
        ({"votes": [vote(vote="both")]}, "FILE: vote 1: `vote` is 'both', not left, right or tie"),
    ],
    ids=str,
)
def test_a_bad_file_is_named(tmp_path, content, said):
    path = tmp_path / "v.json"
    if isinstance(content, dict):
        write(path, **({"votes": [vote()]} | content))
    elif content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=re.escape(said.replace("FILE", str(path)))) as error:
        read_votes([path])
    assert "\n" not in str(error.value)


def test_a_voter_has_one_file(tmp_path):
    one, two = write(tmp_path / "a.json", [vote()], "Ann B"), write(tmp_path / "b.json", [vote()], " Ann  B ")
    with pytest.raises(UserError, match=re.escape(f"{two}: its voter 'Ann B' is also that of {one}; give one file")):
        read_votes([one, two])


def test_files_are_of_one_evaluation(tmp_path):
    one, two = write(tmp_path / "a.json", [vote()]), write(tmp_path / "b.json", [vote()], "Bob", fingerprint="other")
    with pytest.raises(UserError, match=re.escape(f"{two}: its votes are on the answers of another evaluation than")):
        read_votes([one, two])
    (file,) = read_votes([one])
    file.refuse_others(PRINT)
    with pytest.raises(UserError, match=re.escape(f"{one}: its votes are on the answers of another evaluation, or")):
        file.refuse_others("other")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (vote(id="9"), "vote 2 is on prompt '9' of set 'tea', which this evaluation lacks"),
        (vote(set="maths"), "vote 2 is on prompt '1' of set 'maths', which this evaluation lacks"),
        (vote(id="2", left="z"), "vote 2 is on a pair of models that this evaluation lacks"),
        (vote(id="2", left="y"), "vote 2 is on a pair of one model"),
        (vote(left="y", right="x", vote="tie"), "vote 2 is a second one on the same pair"),
    ],
    ids=["prompt", "set", "model", "itself", "twice"],
)
def test_a_vote_that_does_not_fit_is_named(tmp_path, row, said):
    path = write(tmp_path / "v.json", [vote(), row])
    with pytest.raises(UserError, match=re.escape(f"{path}: {said}")):
        resolve(read_votes([path]), PROMPTS, MODELS)
