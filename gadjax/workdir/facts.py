"""What a workdir says of its run: `config.json`, `run.json` and the tokenizer, which later commands read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import tempfile
import time
from typing import Any, Literal

from gadjax.data.pipeline import Dataset
from gadjax.errors import UserError
from gadjax.files import is_url, replace, writing
from gadjax.models.architecture import ModelConfig
from gadjax.models.hf_files import weights_fingerprint
from gadjax.models.model import Model
from gadjax.parallel import processes
from gadjax.setup.blueprint import adapters
from gadjax.setup.prepare import Setup, stage_lengths
from gadjax.workdir.lock import WorkdirLock
from gadjax.workdir.place import sign_of, take_place

NETWORKS: dict[str, Literal["lm", "score"]] = {
    "generator": "lm",
    "discriminator": "score",
}  # the networks of a run, and the head of each
_PATIENCE = 60  # seconds until a file must be seen by all processes


def prepare_workdir(setup: Setup, workdir: pathlib.Path, alone: WorkdirLock, *, begins: bool) -> None:
    """Makes the workdir with all that later commands read: they need the workdir alone.

    It writes `config.json` (resolved), `run.json` (what `run_facts` returns), `tokenizer/`, and the directory of its
    checkpoints. Where several processes train, the first one writes and the others wait until they see the files.

    Args:
      alone: is taken where the workdir is new.
      begins: no checkpoint is there to go on from, and so no log of it.

    Raises:
      UserError: it cannot be written, or another process does not see it, or trains there.
    """
    directory = setup.config.checkpoint.directory
    with processes.together():
        config, facts = setup.config.to_dict(), run_facts(setup)
        if processes.is_first():
            with writing(workdir, "--workdir "):
                workdir.mkdir(parents=True, exist_ok=True)
            alone.take()
            take_place(workdir, directory)  # first: config.json says that it was there
            with writing(workdir, "--workdir "):
                for log in ("metrics.jsonl", "samples.jsonl") if begins else ():
                    (workdir / log).unlink(missing_ok=True)  # before config.json: `_check_never_saved` reads both
                _write_json(workdir / "config.json", config)
                _write_json(workdir / "run.json", facts)
                _save_tokenizer(setup, workdir)
    with processes.together():
        _wait_for(workdir / "run.json", f"--workdir {workdir}")
        sign = sign_of(workdir, directory)
        if not is_url(sign):  # a store is one for all
            _wait_for(pathlib.Path(sign), f"config.checkpoint.directory {directory}")


def _save_tokenizer(setup: Setup, workdir: pathlib.Path) -> None:
    """File by file, each whole or as it was: exports copy them, whenever that is."""
    folder = workdir / "tokenizer"
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=workdir, prefix="tokenizer.") as name:
        setup.tokenizer.save(name)
        for file in sorted(pathlib.Path(name).iterdir()):
            file.replace(folder / file.name)


def _wait_for(path: pathlib.Path, what: str) -> None:
    """A network's file system may show a file to other machines a while after it was written."""
    end = time.monotonic() + _PATIENCE
    while not path.exists():
        if time.monotonic() > end:
            raise UserError(f"{what} is not a folder that all processes share: choose one that is")
        time.sleep(1)


def read_workdir(workdir: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The run's config and facts."""
    try:
        return tuple(json.loads((workdir / name).read_text()) for name in ("config.json", "run.json"))
    except OSError as error:
        raise UserError(
            f"--workdir {workdir} is not the workdir of a run: no {pathlib.Path(error.filename).name}"
        ) from None
    except ValueError as error:
        raise UserError(
            f"--workdir {workdir}: config.json or run.json is damaged ({error}); restore it, or use another --workdir"
        ) from None


def network_model(config: dict[str, Any], facts: dict[str, Any], network: str) -> Model:
    """The architecture of a run's generator or discriminator, with its adapters."""
    model_config = ModelConfig.from_hf(facts["hf_configs"][network], f"run.json, {network}")
    return Model(dataclasses.replace(model_config, lora=adapters(config)), NETWORKS[network])


def run_facts(setup: Setup) -> dict[str, Any]:
    """What run.json holds: the networks' Hugging Face configs, the stages' lengths, and what the data was."""
    splits = {"training": setup.train, "held-out": setup.heldout}
    return {
        "hf_configs": setup.hf_configs,
        "generation_config": _generation_config(setup),
        "stages": stage_lengths(setup),
        "tokenizer": setup.tokenizer.fingerprint(),
        "weights": weights_facts(setup),
        "data": _data_counts(setup),
        "contents": {split: _fingerprint(data) for split, data in splits.items() if data is not None},
    }


def weights_facts(setup: Setup) -> dict[str, str]:
    """Fingerprints of those that the run reads, at its start and later: a name may come to mean others."""
    read = {} if setup.config.random_init else {"student": setup.student}
    if setup.discriminator_init is not None:
        read["discriminator"] = setup.discriminator_init
    return {network: weights_fingerprint(path) for network, path in read.items()}


def _fingerprint(data: Dataset) -> str:
    """Hash of all the token ids of a dataset."""
    return digest(data.prompts.lengths, data.prompts.flat, data.answers.lengths, data.answers.flat)


def digest(*parts: Any) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _data_counts(setup: Setup) -> dict[str, int]:
    splits = {"training": setup.train, "held-out": setup.heldout}
    return {
        f"{split} rows, {name.replace('_', ' ')}": count
        for split, data in splits.items()
        if data is not None
        for name, count in dataclasses.asdict(data.counts).items()
    }


def _generation_config(setup: Setup) -> dict[str, Any]:
    """The student's own, with the ids that ended its responses here."""
    path = setup.student / "generation_config.json"
    own = json.loads(path.read_text()) if path.exists() else {}
    return own | {"eos_token_id": list(setup.tokenizer.eos_ids), "pad_token_id": setup.tokenizer.pad_id}


def _write_json(path: pathlib.Path, value: Any) -> None:
    replace(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())
