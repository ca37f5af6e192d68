"""The command `gadjax`: each command of the package as a subcommand, with the flags of `python -m gadjax.COMMAND`."""

from __future__ import annotations

import os
import runpy
import sys

from gadjax.errors import UserError, run_command, unknown
from gadjax.version import __version__

COMMANDS = {
    "collect": "asks a teacher for answers, live or in batches, within a budget",
    "config": "lists the shipped configs, and prints one to start your own from",
    "plan": "says whether a run fits a machine that is not here, and what it costs there",
    "train": "trains a student as a config says, and exports it",
    "export": "writes any checkpoint of a run as Hugging Face folders",
    "evaluate": "compares models: judge, overlap, two-sample test, KL",
    "generate": "answers the prompts of a file",
    "chat": "answers yours, in the terminal",
    "score": "scores prompts with responses by a discriminator",
}


def usage() -> str:
    """What `gadjax --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [
        "Black-box LLM distillation in JAX.",
        "",
        "    gadjax COMMAND --FLAG=VALUE ...",
        "    gadjax COMMAND --help",
        "    gadjax train --config=demo --workdir=/tmp/demo",
        "",
        *(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()),
        "",
        "gadjax --version prints the version. python -m gadjax.COMMAND is the same as gadjax COMMAND.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Runs the command that the first argument names. Modules of other commands, and JAX, are not imported."""
    run_command(_run)


def _run() -> None:
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h", "help"):
        print(usage())
    elif name == "--version":
        print(f"gadjax {__version__}")
    elif name in COMMANDS:
        sys.argv = [sys.argv[0], *rest]
        if not sys.flags.safe_path and not {"", os.getcwd()} & set(sys.path):
            sys.path.insert(0, os.getcwd())  # as python -m does: a config may import a module beside it
        runpy.run_module(f"gadjax.{name}", run_name="__main__", alter_sys=True)
    elif name.startswith("-"):
        raise UserError(f"{name}: the command comes first, such as gadjax train {name}; gadjax --help lists them")
    else:
        raise UserError(
            f"gadjax has no command {name!r}{unknown(name, COMMANDS)} The commands are {', '.join(COMMANDS)}"
        )
