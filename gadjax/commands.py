"""What the commands share: flags, configs from files, one-line errors."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging as python_logging
import math
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from absl import app, flags, logging

from gadjax import files
from gadjax.errors import UserError, run_command
from gadjax.parallel.chips import GPU_MEMORY_FRACTION

if TYPE_CHECKING:
    from ml_collections import ConfigDict

# Of the host's memory, for what waits there: XLA's pool doubles as it grows, so it takes nearly all that it may.
HOST_MEMORY_FRACTION = 0.75

_CONFIG = "config"
_CONTAINER_LIMIT = pathlib.Path("/sys/fs/cgroup/memory.max")  # of control groups, version 2


def run(main: Callable[[list[str]], int | None]) -> None:
    """Parses the command line and runs `main(argv)`; bad flags and `UserError`s are one line and exit status 2."""
    logging.use_absl_handler()
    logging.set_verbosity(logging.ERROR)
    # Orbax logs the errors that it raises, with tracebacks; this logger is its own, beside all others.
    python_logging.getLogger("absl").setLevel(python_logging.CRITICAL)
    # These libraries log at warning level what is no news to a user; openai and the hub's client use httpx or httpx2.
    for name in ("orbax", "jax", "transformers", "httpx", "httpx2"):
        python_logging.getLogger(name).setLevel(python_logging.ERROR)
    run_command(lambda: app.run(main, flags_parser=_parse))


def define_config() -> None:
    """Defines --config=FILE and, from the file's contents, --config.FIELD=VALUE."""
    from ml_collections import config_flags

    config_flags.DEFINE_config_file(_CONFIG, None, "The run's config: a Python file with get_config().")
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[_CONFIG])  # --help shows those of the command


def read_config() -> ConfigDict:
    """The config of --config with the command line's overrides."""
    config = flags.FLAGS[_CONFIG].value
    if config is None:
        raise UserError("no config: give --config=configs/demo.py or another file with get_config()")
    try:
        config.lock()  # of a file that could not be loaded, any use is the error
    except OSError as error:
        raise UserError(f"--config cannot be read: {_reason(error)}") from None
    return config


def config_name() -> str:
    """The name of --config's file, without folder and extension."""
    from ml_collections import config_flags

    return pathlib.Path(config_flags.get_config_filename(flags.FLAGS[_CONFIG])).stem


def use_compilation_cache() -> None:
    """Keeps compiled programs in JAX_COMPILATION_CACHE_DIR, or ~/.cache/gadjax/xla, for later runs."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path.home() / ".cache" / "gadjax" / "xla"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def use_whole_memory() -> None:
    """Lets JAX have nearly all of a GPU's memory, not 3/4, and 3/4 of the host's for what waits there, not 64 GB.

    Before JAX first uses a GPU. What the environment says already stays.
    """
    host = int(HOST_MEMORY_FRACTION * _host_memory())
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(GPU_MEMORY_FRACTION))
    os.environ.setdefault("XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB", str(host // 2**30))


def _host_memory() -> int:
    """Bytes that this process may use: the machine's, or its container's where that is less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = _CONTAINER_LIMIT.read_text().strip()
    except OSError:  # no container, or one of version 1
        return machine
    return min(machine, int(limit)) if limit.isdigit() else machine


@contextlib.contextmanager
def jsonl_output(path: str | os.PathLike[str]) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Opens --out; the file appears whole, at the end, or not at all. Gives the function that writes a line.

    Raises:
      UserError: the file cannot be written; before any work is done, where that can be known.
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
    app.define_help_flags()
    for argument in argv[1:]:
        if not _is_unicode(argument):  # Arrow, tokenizers and JSON take no other text, nor do terminals
            raise UserError(f"the argument {argument!r} is not valid UTF-8: rename the file, or mend the text")
    argv = [_at_home(argument) for argument in argv]
    try:
        rest = flags.FLAGS(argv)
    except SystemExit:  # absl has printed the help; the config's fields are no flags of its own
        if _CONFIG in flags.FLAGS and "--helpxml" not in argv:
            from gadjax.config.reference import help_text

            print("\n" + help_text())
        raise
    except flags.Error as error:
        raise UserError(f"{' '.join(str(error).split())}; --help lists the flags") from None
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"--config cannot be read: {_reason(error)}") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if not any(argument.startswith(f"--{_CONFIG}") for argument in argv):
            raise
        # A mistake inside the file itself is the author's to see whole; one in an override has no frame there.
        if _raised_in_config(error, argv):
            raise
        raise UserError(f"a --config.FIELD is not in the config: {_one_line(error)}; see docs/config.md") from None
    _check_numbers()
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}: flags are written --NAME=VALUE; --help lists them")
    return rest


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_numbers() -> None:
    """Bounds of flags let NaN pass, and integers have none here; the config's fields have checks of their own."""
    for name in flags.FLAGS:
        value = flags.FLAGS[name].value
        if name.startswith(f"{_CONFIG}."):
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"--{name}={value}: expected a finite number")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise UserError(f"--{name}={value}: expected a number of at most 64 bits")


def _at_home(argument: str) -> str:
    """The config's file is read while flags are parsed, so that its "~" must be gone before."""
    name, _, file = argument.partition("=")
    return f"{name}={files.expand(file)}" if name == f"--{_CONFIG}" and file.startswith("~") else argument


def _raised_in_config(error: BaseException, argv: list[str]) -> bool:
    """Whether an error comes from a frame of the config file."""
    names = (f"--{_CONFIG}", f"-{_CONFIG}")
    files = {value for name, value in itertools.pairwise(argv) if name in names}
    files |= {value for name, _, value in (argument.partition("=") for argument in argv) if name in names}
    files = tuple(file.partition(":")[0] for file in files if file)
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename.endswith(files):
            return True
        traceback = traceback.tb_next
    return False


def _reason(error: OSError) -> str:
    """The last of the lines in which ml_collections says where it looked."""
    return str(error).splitlines()[-1].strip()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).replace("\\n", " ").replace('"', "").replace("\\'", "").split())
