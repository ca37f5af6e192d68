"""The flags that the benchmarks share, and what they do before measuring."""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import sys
from collections.abc import Iterator

from benchmarks.harness import peers, report
from benchmarks.harness.peers import Worker
from gadjax.errors import UserError
from gadjax.files import expand


def parser(module: str, description: str, peer: peers.Peer | None = None) -> argparse.ArgumentParser:
    """A parser with the common flags.

    Args:
      module: its name for `python -m`.
      description: the module's docstring.
      peer: the package that the benchmark compares with, if any.
    """
    made = argparse.ArgumentParser(
        prog=f"python -m {module}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    name = module.rpartition(".")[2]
    made.add_argument("--rounds", type=int, help="turns of each side; default: 5, with --quick 2")
    made.add_argument("--quick", action="store_true", help="tiny sizes, seconds: shows that it works, measures nothing")
    made.add_argument("--out", type=expand, default=pathlib.Path(f"runs/benchmarks/{name}.json"), help="the JSON")
    if peer is not None:
        made.add_argument("--setup", action="store_true", help=f"install {' and '.join(peer.requirements)}, and end")
        made.add_argument("--setup_index", help="an index of packages for --setup, beside pip's own")
        made.add_argument("--peers", type=expand, default=peers.CACHE, help="folder of the peers' environments")
        made.add_argument("--peer_python", type=expand, help="an interpreter that has the peer, instead of --peers")
        made.add_argument("--alone", action="store_true", help="without the peer: gadjax's own figures")
    return made


def parse(made: argparse.ArgumentParser, peer: peers.Peer | None = None) -> argparse.Namespace | None:
    """The parsed command line, with `peer_python` None if --alone. None if --setup has done its work.

    Raises:
      UserError: too few rounds, or a peer is needed and not installed.
    """
    arguments = made.parse_args()
    arguments.module = made.prog.rpartition(" ")[2]
    if arguments.rounds is None:
        arguments.rounds = 2 if arguments.quick else 5
    if arguments.rounds < 1:
        raise UserError(f"--rounds={arguments.rounds}: at least 1")
    if peer is not None:
        if arguments.setup:
            peers.set_up(peer, arguments.peers, arguments.setup_index)
            print(f"{peer.name} is ready in {arguments.peers / peer.name}")
            return None
        if arguments.alone:
            arguments.peer_python = None
        elif arguments.peer_python is None:
            arguments.peer_python = peers.find_python(peer, arguments.peers, arguments.module)
        elif not arguments.peer_python.exists():
            raise UserError(f"--peer_python={arguments.peer_python}: there is no such interpreter")
    return arguments


def say_how_busy() -> None:
    """Warns if other processes use the machine: they slow all sides, and widen the spread of the ratios."""
    load, cores = os.getloadavg()[0], report.machine()["cores"]
    if load > 0.3 * cores:
        progress(f"warning: the machine's load is {load:.1f} on {cores} cores before anything is measured")


def progress(text: str) -> None:
    """Prints a line of progress to stderr."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def workers(ours: str, theirs: str, arguments: argparse.Namespace) -> Iterator[tuple[Worker, Worker | None]]:
    """The processes of both sides, by their modules' names. The peer's is None with --alone."""
    with contextlib.ExitStack() as stack:
        ready = stack.enter_context(Worker(ours))
        python = arguments.peer_python
        yield ready, stack.enter_context(Worker(theirs, python)) if python else None
