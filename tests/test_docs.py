"""What README.md and docs/ say: links lead somewhere; the commands, flags and fields that are named exist.

`mkdocs build --strict` (.ci/run) checks the site. These tests check the files as they are read in the repository.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import pathlib
import re
import shlex
from collections.abc import Iterator

import pytest
from absl import flags

from gadjax.cli import COMMANDS
from gadjax.config import shipped
from gadjax.config.fields import FIELDS
from tests.conftest import ROOT

pytestmark = pytest.mark.quick

GUIDES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
PAGES = [*GUIDES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md"]
OTHER_FLAGS = {"arms", "jobs", "keep", "setup", "signal"}  # in running text: of benchmarks, and of sbatch
_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
_LINK = re.compile(r"\[[^\]]*\]\(([^()\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)
_DOTTED = re.compile(r"(?<![\w./-])([a-z_]+\.[a-z_0-9]+)(?![\w./(])")  # a name such as gad.clip in running text


def name_of(page: pathlib.Path) -> str:
    return page.relative_to(ROOT).as_posix()


pages = pytest.mark.parametrize("page", PAGES, ids=name_of)
guides = pytest.mark.parametrize("page", GUIDES, ids=name_of)


def text_of(page: pathlib.Path) -> str:
    """A page without its blocks of code."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: pathlib.Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found = _HEADING.findall(text_of(page))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def command_lines(page: pathlib.Path) -> Iterator[tuple[str, list[str]]]:
    """The commands of gadjax in a page's blocks of code and in its text, each with its arguments."""
    text = page.read_text(encoding="utf-8")
    blocks = [block for language, block in _FENCE.findall(text) if language == "sh"]
    lines = [line for block in blocks for line in re.sub(r"\\\n", " ", block).splitlines()]
    for line in [*lines, *(" ".join(code.split()) for code in _INLINE.findall(text_of(page)))]:
        for part in re.split(r"&&|;", line):
            words = _words(part)
            name = words[words.index("-m") + 1] if "-m" in words[:-1] else " ".join(words[:1])
            if name == "gadjax" and len(words) > 1 and words[1].islower() and words[1].isalpha():
                yield words[1], words[2:]
            elif name.startswith("gadjax.") and any(word.startswith("--") for word in words):
                yield name.removeprefix("gadjax."), words[words.index(name) + 1 :]


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError:  # an apostrophe in code of another kind
        return []


@functools.cache
def flags_of(command: str) -> frozenset[str]:
    """The names of a command's flags."""
    if command == "config":
        return frozenset({"fields"})  # by argparse
    before = set(flags.FLAGS)
    importlib.import_module(f"gadjax.{command}").define_flags()
    defined = frozenset(set(flags.FLAGS) - before)
    for name in defined:
        delattr(flags.FLAGS, name)
    return defined | {"help"}


@pages
def test_links_lead_to_files_and_headings(page):
    for link in _LINK.findall(text_of(page)):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: there is no {target}"
        if anchor:
            assert anchor in anchors(target), f"{link}: no heading has this anchor"


def test_links_of_the_pages_stay_on_the_site():
    """A site holds docs/ alone."""
    for page in ROOT.glob("docs/*.md"):
        outside = [link for link in _LINK.findall(text_of(page)) if link.startswith("../")]
        assert not outside, f"{name_of(page)}: {outside}"


def test_the_readme_is_short():
    assert 6_000 <= (ROOT / "README.md").stat().st_size <= 8_192


def test_the_readme_has_the_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = [block.strip() for language, block in _FENCE.findall(text) if language == "sh"]
    assert "pip install -e . && python -m gadjax.train --config=configs/demo.py --workdir=/tmp/demo" in commands
    assert "pip install -e '.[test]' && python -m pytest -n 2 -q" in commands


@guides
def test_commands_and_their_flags_exist(page):
    for command, arguments in command_lines(page):
        assert command in COMMANDS, f"{command}: no command of gadjax"
        for argument in arguments:
            name, _, value = argument.removeprefix("--").partition("=")
            if argument.startswith("--") and not name.startswith("config."):
                assert name in flags_of(command), f"gadjax.{command} has no flag --{name}"
            if name == "config" and value.isidentifier():
                assert value in shipped.names(), f"{value}: no shipped config"


@guides
def test_flags_in_running_text_exist(page):
    known = OTHER_FLAGS.union(*map(flags_of, COMMANDS))
    for code in _INLINE.findall(text_of(page)):
        name = code.removeprefix("--").partition("=")[0].split()[0]
        if code.startswith("--") and not name.startswith("config."):
            assert name in known, f"`{code}`: no command of gadjax has this flag"


@guides
def test_fields_exist(page):
    sections = {field.partition(".")[0] for field in FIELDS if "." in field}
    named = set(re.findall(r"--config\.([a-z][a-z_.0-9]*[a-z0-9])", page.read_text(encoding="utf-8")))
    for dotted in itertools.chain(*map(_DOTTED.findall, _INLINE.findall(text_of(page)))):
        section, _, name = dotted.partition(".")
        is_module = name == "py" or (ROOT / "gadjax" / section / f"{name}.py").exists()
        if section in sections and not is_module:
            named.add(dotted)
    for field in named:
        assert field in FIELDS, f"{field}: no field of a config"
