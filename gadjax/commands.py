"""What all commands share: parsing of flags and of the config, one-line errors, JAX's memory and compilation cache."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging as python_logging
import math
import os
import pathlib
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from absl import app, flags, logging

from gadjax import files
from gadjax.errors import UserError, run_command
from gadjax.parallel.chips import GPU_MEMORY_FRACTION

if TYPE_CHECKING:
    from ml_collections import ConfigDict

# Share of the host's memory for offloaded state. XLA's pool doubles as it grows, so it takes nearly all that it may.
HOST_MEMORY_FRACTION = 0.75
TEMPERATURE = 0.8  # that answers are drawn at, as in a run's rollout, unless the user says otherwise

_CONFIG = "config"
_CONFIG_FLAGS = (f"--{_CONFIG}", f"-{_CONFIG}")
_CONTAINER_LIMIT = pathlib.Path("/sys/fs/cgroup/memory.max")  # in control groups, version 2


def run(main: Callable[[list[str]], int | None]) -> None:
    """Parses the command line and runs `main(argv)`. Bad flags and `UserError`s become one line and exit status 2."""
    logging.use_absl_handler()
    logging.set_verbosity(logging.ERROR)
    # Orbax logs the errors that it raises, with tracebacks, through this logger, which nothing else uses.
    python_logging.getLogger("absl").setLevel(python_logging.CRITICAL)
    # These libraries log warnings that are no news to a user; openai and the hub's client use httpx or httpx2.
    for name in ("orbax", "jax", "transformers", "httpx", "httpx2"):
        python_logging.getLogger(name).setLevel(python_logging.ERROR)
    run_command(lambda: app.run(main, flags_parser=_parse))


def define_config() -> None:
    """Defines --config=FILE and, for every field that the file has, --config.FIELD=VALUE."""
    from ml_collections import config_flags

    config_flags.DEFINE_config_file(_CONFIG, None, "The run's config: a shipped one's name, or a Python file.")
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[_CONFIG])  # --help shows the command's own flags


def read_config() -> ConfigDict:
    """The config in the file of --config, with the command line's overrides.

    Raises:
      UserError: there is no --config, or its file cannot be read.
    """
    config = flags.FLAGS[_CONFIG].value
    if config is None:
        raise UserError("no config: give --config=demo, another name that `gadjax config` lists, or a file of yours")
    try:
        config.lock()  # if the file could not be loaded, any use of its config raises the error
    except OSError as error:
        raise UserError(_unread(error)) from None
    return config


def config_name() -> str:
    """The name of the file of --config, without folder and extension."""
    from ml_collections import config_flags

    return pathlib.Path(config_flags.get_config_filename(flags.FLAGS[_CONFIG])).stem


def use_compilation_cache() -> None:
    """Keeps compiled programs for later runs, in JAX_COMPILATION_CACHE_DIR or ~/.cache/gadjax/xla."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        if folder := files.user_cache("xla"):
            jax.config.update("jax_compilation_cache_dir", str(folder))
        else:
            print("no home folder, so compiled programs are not kept; set XDG_CACHE_HOME to keep them", file=sys.stderr)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def use_whole_memory() -> None:
    """Allows JAX nearly all of a GPU's memory (its default: 3/4), and 3/4 of the host's for offloaded state (64 GB).

    Call it before JAX first uses a GPU. Limits that the environment already sets stay.
    """
    host = int(HOST_MEMORY_FRACTION * host_memory())
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(GPU_MEMORY_FRACTION))
    os.environ.setdefault("XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB", str(host // 2**30))


def host_memory() -> int:
    """Bytes that this process may use: the machine's memory, or its container's limit if that is less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = _CONTAINER_LIMIT.read_text().strip()
    except OSError:  # no container, or control groups of version 1
        return machine
    return min(machine, int(limit)) if limit.isdigit() else machine


@contextlib.contextmanager
def jsonl_output(path: str | os.PathLike[str]) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Opens the file of --out and yields a function that writes one line to it.

    The file appears when the block ends, whole; if the block fails, it does not appear.

    Raises:
      UserError: the file cannot be written. This is raised before any work is done, where it can be known.
    """
    path = files.expand(path)
    lines: list[str] = []
    with files.whole_output(path) as partial:
        with files.writing(path):
            partial.touch()
        yield lambda line: lines.append(json.dumps(line, ensure_ascii=False) + "\n")
        with files.writing(path):
            partial.write_text("".join(lines), encoding="utf-8")


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags, and returns the program's name alone.

    Raises:
      UserError: the command line is wrong, or the config's file cannot be read. A mistake in the code of that file is
        raised as it is, with its traceback.
    """
    app.define_help_flags()
    for argument in argv[1:]:
        try:
            argument.encode()  # Arrow, tokenizers, JSON and terminals take no other text
        except UnicodeEncodeError:
            raise UserError(
                f"the argument {argument!r} is not valid UTF-8: rename the file, or mend the text"
            ) from None
    if _CONFIG in flags.FLAGS:
        argv = _with_config_paths(argv)
    try:
        rest = flags.FLAGS(argv)
    except SystemExit:  # absl has printed the help, and would exit with 1; the config's fields are no flags of its own
        if _CONFIG in flags.FLAGS and "--helpxml" not in argv:
            from gadjax.config.reference import describe_fields

            print("\n" + describe_fields(width=80))
        raise SystemExit(0) from None
    except flags.Error as error:
        raise UserError(f"{' '.join(str(error).split())}; --help lists the flags") from None
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(_unread(error)) from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # ml_collections raises these for a wrong override; so may the author's code in the config's file.
        if not any(argument.startswith(f"--{_CONFIG}") for argument in argv) or _raised_in_config(error, argv):
            raise
        reason = " ".join(str(error).replace("\\n", " ").replace('"', "").replace("\\'", "").split())
        raise UserError(f"a --config.FIELD is not in the config: {reason}; see docs/config.md") from None
    _check_numbers()
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}: flags are written --NAME=VALUE; --help lists them")
    return rest


def _with_config_paths(argv: list[str]) -> list[str]:
    """The arguments, with the config's path in --config: the file is read while flags are parsed.

    Raises:
      UserError: --config names a config that is not shipped.
    """
    from gadjax.config.shipped import config_path

    found = []
    for before, argument in itertools.pairwise(["", *argv]):
        name, equals, given = argument.partition("=")
        if name in _CONFIG_FLAGS and equals:
            argument = f"{name}={config_path(given)}"
        elif before in _CONFIG_FLAGS:
            argument = config_path(argument)
        found.append(argument)
    return found


def _check_numbers() -> None:
    """Refuses numbers that absl's bounds let pass: NaN, infinities, integers of more than 64 bits.

    The config's fields have checks of their own.
    """
    for name in flags.FLAGS:
        value = flags.FLAGS[name].value
        if name.startswith(f"{_CONFIG}."):
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"--{name}={value}: expected a finite number")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise UserError(f"--{name}={value}: expected a number of at most 64 bits")


def _raised_in_config(error: BaseException, argv: list[str]) -> bool:
    """Whether the error was raised while code of the config's file ran."""
    given = {value for name, value in itertools.pairwise(argv) if name in _CONFIG_FLAGS}
    given |= {value for name, _, value in (argument.partition("=") for argument in argv) if name in _CONFIG_FLAGS}
    paths = tuple(value.partition(":")[0] for value in given if value)  # FILE:ARGUMENT passes an argument to it
    return any(frame.filename.endswith(paths) for frame in traceback.extract_tb(error.__traceback__))


def _unread(error: OSError) -> str:
    """The message for a config's file that cannot be read, with the shipped config of its name if there is one.

    ml_collections puts the reason last, after the places where it looked for the file.
    """
    from gadjax.config.shipped import hint

    reason = str(error).splitlines()[-1].strip()
    absent = reason.rpartition(": ")[2].strip("'") if "No such file" in reason else ""
    return f"--config cannot be read: {reason}{hint(absent) if absent else ''}"
