"""Lists the configs that gadjax ships, prints one to start your own from, or describes every field.

gadjax config
gadjax config qwen7b > mine.py
gadjax config --fields
"""

from __future__ import annotations

import argparse

from gadjax.config import shipped
from gadjax.config.reference import page
from gadjax.errors import run_command


def main() -> None:
    """Prints what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="gadjax config", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="Print this config.")
    parser.add_argument("--fields", action="store_true", help="Describe every field of a config, as docs/config.md.")
    arguments = parser.parse_args()
    if arguments.fields and arguments.name:
        parser.error("give NAME or --fields, not both")
    if arguments.fields:
        print(page(), end="")
    elif arguments.name:
        print(shipped.shipped_path(arguments.name).read_text(encoding="utf-8"), end="")
    else:
        width = max(map(len, shipped.names()), default=0)
        for name in shipped.names():
            print(f"{name:<{width}}  {shipped.describe(name)}")


if __name__ == "__main__":
    run_command(main)
