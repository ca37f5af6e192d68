"""What a run's folder records about the run for later commands: `config.json`, `run.json` and `tokenizer/`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import tempfile
import time
from typing import Any, Literal

import yaml

from gadjax.errors import UserError
from gadjax.files import is_url, replace, writing
from gadjax.models.architecture import ModelConfig
from gadjax.models.hf_files import weights_fingerprint
from gadjax.models.model import Model
from gadjax.parallel import processes
from gadjax.setup.blueprint import adapters, discriminator_head
from gadjax.setup.prepare import Setup, stage_lengths
from gadjax.workdir.lock import WorkdirLock
from gadjax.workdir.place import sign_of, take_place

Network = Literal["generator", "discriminator"]
NETWORKS: tuple[Network, ...] = ("generator", "discriminator")
_PATIENCE = 60  # seconds that a process waits to see a file that another one has written


def prepare_workdir(setup: Setup, workdir: pathlib.Path, alone: WorkdirLock, *, begins: bool) -> None:
    """Makes the workdir, the folder of its checkpoints, and the files that later commands read.

    It writes `config.json` (the resolved config), `run.json` (`run_facts`) and `tokenizer/`. The first process writes,
    and the others wait until they see the files.

    Args:
      setup: the run.
      workdir: the run's folder.
      alone: the workdir's lock, which is taken if the workdir is new.
      begins: whether the run starts without a checkpoint, so that old logs are deleted.

    Raises:
      UserError: a file cannot be written, a process does not see the folder, or another process trains in it.
    """
    directory = setup.config.checkpoint.directory
    with processes.together():
        facts = {"config.json": setup.config.to_dict(), "run.json": run_facts(setup)}
        if processes.is_first():
            with writing(workdir, "--workdir "):
                workdir.mkdir(parents=True, exist_ok=True)
            alone.take()
            # The folder of checkpoints is made before config.json, which says that it exists.
            take_place(workdir, directory)
            with writing(workdir, "--workdir "):
                # The logs are deleted before config.json is written: a later start concludes from both of them that
                # checkpoints are missing.
                for log in ("metrics.jsonl", "samples.jsonl") if begins else ():
                    (workdir / log).unlink(missing_ok=True)
                for name, value in facts.items():
                    replace(workdir / name, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())
                _save_tokenizer(setup, workdir)
    # Every process waits until it sees both folders. An object store is the same for all.
    with processes.together():
        _wait_for(workdir / "run.json", f"--workdir {workdir}")
        sign = sign_of(workdir, directory)
        if not is_url(sign):
            _wait_for(pathlib.Path(sign), f"config.checkpoint.directory {directory}")


def _save_tokenizer(setup: Setup, workdir: pathlib.Path) -> None:
    """Replaces the tokenizer's files one by one, each at once, as an export may copy them at any time."""
    folder = workdir / "tokenizer"
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=workdir, prefix="tokenizer.") as name:
        setup.tokenizer.save(name)
        for file in sorted(pathlib.Path(name).iterdir()):
            file.replace(folder / file.name)


def _wait_for(path: pathlib.Path, what: str) -> None:
    """Waits until a path exists: a network file system may show a file to other machines later."""
    end = time.monotonic() + _PATIENCE
    while not path.exists():
        if time.monotonic() > end:
            raise UserError(f"{what} is not a folder that all processes share: choose one that is")
        time.sleep(1)


def read_workdir(workdir: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The contents of a run's config.json and run.json.

    Raises:
      UserError: a file is missing or damaged.
    """
    try:
        config, facts = (json.loads((workdir / name).read_text()) for name in ("config.json", "run.json"))
    except OSError as error:
        name = pathlib.Path(error.filename).name
        raise UserError(f"--workdir {workdir} is not the workdir of a run: no {name}") from None
    except ValueError as error:
        raise UserError(
            f"--workdir {workdir}: config.json or run.json is damaged ({error}); restore it, or use another --workdir"
        ) from None
    return config, facts


def network_model(config: dict[str, Any], facts: dict[str, Any], network: Network) -> Model:
    """The architecture of a run's generator or discriminator, with its adapters."""
    model_config = ModelConfig.from_hf(facts["hf_configs"][network], f"run.json, {network}")
    head: Literal["lm", "score"] = "lm" if network == "generator" else discriminator_head(config)
    return Model(dataclasses.replace(model_config, lora=adapters(config)), head)


def run_facts(setup: Setup) -> dict[str, Any]:
    """The contents of run.json: what exports need beside the config, and what tells whether a run is the same one."""
    splits = {"training": setup.train} | ({"held-out": setup.heldout} if setup.heldout is not None else {})
    # An export's generation config is the student's, with the ids that end a response and pad it here.
    path = setup.student / "generation_config.json"
    generation_config = json.loads(path.read_text()) if path.exists() else {}
    generation_config |= {"eos_token_id": list(setup.tokenizer.eos_ids), "pad_token_id": setup.tokenizer.pad_id}
    return {
        "hf_configs": setup.hf_configs,
        "generation_config": generation_config,
        "stages": stage_lengths(setup),
        "tokenizer": setup.tokenizer.fingerprint(),
        "weights": weights_facts(setup),
        "extensions": setup.extensions.names(),
        "data": {
            f"{split} rows, {name.replace('_', ' ')}": count
            for split, data in splits.items()
            for name, count in dataclasses.asdict(data.counts).items()
        },
        "contents": {
            split: digest(data.prompts.lengths, data.prompts.flat, data.answers.lengths, data.answers.flat)
            for split, data in splits.items()
        },
        # What the exports' cards say of the teacher, and of the weights that a network starts from.
        "teachers": list(setup.train.source.models),
        "origins": {
            "generator": origin(setup.student),
            "discriminator": origin(setup.discriminator_init or setup.student),
        },
    }


def origin(directory: pathlib.Path) -> dict[str, Any]:
    """What a model's own card says of its licence and of the model that it was made from, as far as it says so."""
    from huggingface_hub import metadata_load

    card = directory / "README.md"
    try:
        data = (metadata_load(card) if card.exists() else None) or {}
    except (ValueError, yaml.YAMLError):  # front matter that is malformed says nothing
        data = {}
    return {name: data[name] for name in ("license", "license_name", "license_link", "base_model") if data.get(name)}


def weights_facts(setup: Setup) -> dict[str, str]:
    """Fingerprints of the weights that the run reads, as a path or hub id may name others later."""
    read = {} if setup.config.random_init else {"student": setup.student}
    if setup.discriminator_init is not None and not setup.config.discriminator.random_init:
        read["discriminator"] = setup.discriminator_init
    return {network: weights_fingerprint(path) for network, path in read.items()}


def digest(*parts: Any) -> str:
    """A hash of bytes and arrays, as hexadecimal digits."""
    hashed = hashlib.blake2b(digest_size=8)
    for part in parts:
        hashed.update(part)
    return hashed.hexdigest()
