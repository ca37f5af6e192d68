"""Models on the Hugging Face hub: finds one by its name, which may be a folder too, and uploads one."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator, Sequence

from gadjax.errors import UserError, first_line
from gadjax.files import expand

TOKENIZER_FILES = ("*.json", "*.jinja", "*.txt", "tokenizer.model")
MODEL_FILES = ("*.safetensors", "README.md", *TOKENIZER_FILES)

# Copies of the weights in other formats: original/, onnx/, Mistral's consolidated files.
_IGNORED = ("*/*", "consolidated*")
_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")

# Files of an earlier upload that would stand beside a newer one's: it may have fewer files of weights, or no adapters.
_REPLACED = ("*.safetensors", "*.safetensors.index.json", "adapter/*")
_REMEDIES = {
    401: "run `hf auth login`, or set HF_TOKEN to a valid token",
    403: "use a token that may write there",
    409: "somebody else writes there; run it again",
    429: "the hub wants fewer requests; run it again later",
}
_LATER = "run it again later"


def local_directory(name: str | os.PathLike[str], files: Sequence[str]) -> pathlib.Path:
    """The directory of a model: `name` itself if it is a directory, or else a local copy of the hub's model `name`.

    Args:
      name: a directory or hub id.
      files: patterns of the files to download from the hub.

    Raises:
      UserError: `name` is neither, or the hub does not provide it and no earlier download is cached.
    """
    path = expand(name)
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{name}: a file; give the directory that it lies in")
    if not _ID.fullmatch(os.fspath(name)):
        raise UserError(f"{name}: no such directory; give a Hugging Face directory or a hub id such as org/model")
    from huggingface_hub import snapshot_download  # slow to import, and not needed for a directory

    try:
        with quiet():
            return pathlib.Path(
                snapshot_download(os.fspath(name), allow_patterns=[*files], ignore_patterns=[*_IGNORED])
            )
    except Exception as error:  # the hub's own errors, and those of its HTTP client: time-outs, proxies, TLS
        raise UserError(
            f"{name}: no such directory, and the hub did not provide it either ({first_line(error)}); without a "
            "network, give a directory"
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """A block in which `huggingface_hub` keeps quiet about attempts that fail: the error's own line says why.

    Where the user has set HF_HUB_VERBOSITY, that decides.
    """
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    if not os.environ.get("HF_HUB_VERBOSITY"):
        logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@dataclasses.dataclass(frozen=True)
class Upload:
    """A model repository of the hub that a folder is to be uploaded to.

    Attributes:
      flag: the flag that names it, for messages.
      name: OWNER/NAME.
      public: whether everybody may see it.
    """

    flag: str
    name: str
    public: bool

    def check(self) -> None:
        """Asks the hub whether the upload can work: name, token, owner, and who may see the repository if it exists.

        Raises:
          UserError: it cannot; the message says what to do.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError, RepositoryNotFoundError
        from huggingface_hub.utils import validate_repo_id

        try:
            validate_repo_id(self.name)
        except HFValidationError as error:
            raise UserError(f"{self}: no name that the hub takes ({first_line(error)})") from None
        if "/" not in self.name:
            raise UserError(f"{self}: expected OWNER/NAME, such as ada/my-model")
        hub, owner = HfApi(), self.name.partition("/")[0]
        try:
            user = hub.whoami()
        except LocalTokenNotFoundError:
            raise UserError(f"{self}: no token for the hub: run `hf auth login`, or set HF_TOKEN") from None
        except Exception as error:  # as in `local_directory`
            raise UserError(f"{self}: {_reason(error)}") from error
        owners = [user["name"], *(one["name"] for one in user.get("orgs", []))]
        if owner not in owners:
            raise UserError(
                f"{self}: the token is of {owners[0]}, who may upload to {', '.join(owners)}, not to {owner}"
            )
        if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise UserError(f"{self}: the token may only read; make one that may write, and log in with it")
        try:
            private = bool(hub.model_info(self.name).private)
        except RepositoryNotFoundError:
            return
        except Exception as error:
            raise UserError(f"{self}: {_reason(error)}") from error
        if private == self.public:
            remedy = "without --public, or make it public on the hub" if private else "with --public, or another name"
            raise UserError(f"{self}: the repository is there and {_seen_by(not private)}: push {remedy}")

    def send(self, folder: pathlib.Path, message: str) -> str:
        """Makes the repository if it is not there, uploads the folder as one commit, and returns its address.

        What the hub has already is not uploaded again.

        Args:
          folder: an export.
          message: the commit's message.

        Raises:
          UserError: the hub did not take it. The folder stays.
        """
        from huggingface_hub import HfApi

        hub = HfApi()
        try:
            url = hub.create_repo(self.name, private=not self.public, exist_ok=True)
            hub.upload_folder(
                repo_id=self.name, folder_path=folder, commit_message=message, delete_patterns=[*_REPLACED]
            )
        except Exception as error:
            raise UserError(f"{self}: {_reason(error)}; {folder} is complete and stays") from error
        return str(url)

    def describe(self, folder: pathlib.Path) -> str:
        """Lines that say what will be uploaded: every file with its size, and how the model card begins."""
        files = {path: path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
        lines = [f"uploading to {self.name} ({_seen_by(self.public)}), {_size(sum(files.values()))}:"]
        lines += [f"  {_size(size):>9}  {path.relative_to(folder)}" for path, size in files.items()]
        card = folder / "README.md"
        if card.exists():
            head = card.read_text(encoding="utf-8").partition("\n## ")[0].rstrip()
            lines += ["its card begins:", *(f"  {line}".rstrip() for line in head.splitlines())]
        return "\n".join(lines)

    def __str__(self) -> str:
        return f"--{self.flag}={self.name}"


def _seen_by(public: bool) -> str:
    return "public" if public else "private"


def _size(count: int) -> str:
    """Bytes in a unit in which the number is short."""
    if count < 1000:
        return f"{count} B"
    return next(
        f"{count / scale:.1f} {unit}" for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if count >= scale
    )


def _reason(error: BaseException) -> str:
    """What the hub answered, and what to do about it."""
    cause = error.__cause__ if type(error) is RuntimeError and error.__cause__ else error  # of one file's upload
    status = getattr(getattr(cause, "response", None), "status_code", None)
    told = getattr(cause, "server_message", None) or first_line(cause)
    what = f"the hub answers {status}" if status else "the hub gives no answer"
    return f"{what} ({told}): {_REMEDIES.get(status or 0, _LATER)}"
