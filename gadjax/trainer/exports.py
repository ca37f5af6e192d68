"""A workdir: what it says of its run, whether a run may continue in it, and its networks as exports."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

from etils import epath

from gadjax.checkpoint import Checkpoints, is_damage
from gadjax.config.check import discriminator_checkpoint, field_value
from gadjax.data.pipeline import Dataset
from gadjax.data.tokenizer import vocabulary_fingerprint
from gadjax.errors import UserError, first_line
from gadjax.files import is_url, replace, writing
from gadjax.metrics import read_heldout, read_metrics, read_stages
from gadjax.model_card import model_card
from gadjax.models import lora
from gadjax.models.adapters import Adapters, merged_params
from gadjax.models.architecture import ModelConfig
from gadjax.models.hf_files import weights_fingerprint
from gadjax.models.model import Model, Params
from gadjax.models.save import save_pretrained
from gadjax.models.weights import named_leaves, resolve_model
from gadjax.parallel import processes
from gadjax.trainer.blueprint import abstract_state, adapters
from gadjax.trainer.lock import WorkdirLock
from gadjax.trainer.places import check_place, sign_of, take_place
from gadjax.trainer.setup import Setup, stage_lengths

NETWORKS = {"generator": "lm", "discriminator": "score"}  # and the head of each

# Fields that make a run this run. All others (lengths of stages, learning rates, evaluation, mesh, ...) may change
# where it continues. Files of data may lie elsewhere: their contents are compared.
_FIXED = (
    "student",
    "random_init",
    "lora.rank",
    "lora.alpha",
    "seed",
    "batch_size",
    "data.max_prompt_length",
    "data.max_response_length",
    "data.cut_answers",
    "data.chat_template",
    "data.template_args",
    "data.template_date",
    "rollout.num_samples",
    "discriminator.init",
    "discriminator.replay_size",
)
# What runs were before gadjax had a field, of those whose absence says so.
_EARLIER = {"lora.rank": 0}
_SHOWN = 80  # characters of a value in a message
_PATIENCE = 60  # seconds until a file must be seen by all processes


def check_processes(setup: Setup, workdir: pathlib.Path) -> None:
    """Refuses processes that would not train the same run.

    Raises:
      UserError: their workdirs, configs, networks, tokenizers or data differ, or the checkpoints that they see.
    """
    if processes.count() == 1:
        return
    with processes.together(), contextlib.closing(Checkpoints.of(workdir, setup.config)) as checkpoints:
        parts = {"config": setup.config.to_dict(), **_facts(setup), "workdir": str(workdir)}
        parts["checkpoints"] = checkpoints.steps()
    digests = {name: _digest(json.dumps(value, sort_keys=True).encode()) for name, value in parts.items()}
    processes.check_equal(digests)


def check_workdir(setup: Setup, workdir: pathlib.Path, force: Callable[[str], None] | None = None) -> list[int]:
    """Refuses to continue the run that a workdir holds as another one; nothing is written.

    Args:
      force: shows a line; where it is given, the run goes on as another one if its checkpoint can be.

    Returns:
      Steps of its checkpoints, ascending.

    Raises:
      UserError: a field of `_FIXED`, the stages up to the one in progress, a network, the tokenizer or the data is not
        what it was; or with `force`, networks, tokenizer or stages are others than those of the checkpoint. Or its
        checkpoints are not where they should be, or another run's.
    """
    with contextlib.closing(Checkpoints.of(workdir, setup.config)) as checkpoints:
        saved, stage, where = checkpoints.steps(), checkpoints.stage(), checkpoints.directory
    check_place(workdir, setup.config.checkpoint.directory, saved)
    if not saved:
        _check_never_saved(workdir, where)
        return []
    if stage is None:
        raise UserError(
            f"--workdir {workdir}: no checkpoint says where its run stood; restore {where} from a copy, or use another "
            "--workdir"
        )
    if not (workdir / "config.json").exists():
        raise UserError(f"{where} has checkpoints, but --workdir {workdir} is not that of their run: give that one")
    config, facts = read_workdir(workdir)
    # What else an earlier version of gadjax did not write down cannot have changed.
    fields = [field for field in _FIXED if _value(config, field) is not None]
    known = {name: value for name, value in _facts(setup).items() if name in facts}
    changes = _changes(_identity(config, facts, fields), _identity(setup.config, known, fields))
    begun = config["stages"].index(stage) + 1
    if config["stages"][:begun] != list(setup.config.stages[:begun]):
        changes["config.stages"] = ",".join(config["stages"]), ",".join(setup.config.stages)
    if config["random_init"] and changes.keys() == {"config.student"}:
        return saved  # the same architecture and tokenizer in another folder, of which nothing else is read
    if changes:
        shown = "; ".join(f"{what}: {_shown(old)} → {_shown(new)}" for what, (old, new) in changes.items())
        if force is None:
            raise UserError(f"--workdir {workdir} holds another run ({shown}): use another --workdir, or --force")
        _check_can_go_on(setup, workdir, stage)
        force(
            f"warning: --force: the run in {workdir} goes on as another one ({shown}); steps count on, and the data "
            "from where its order would stand, had the run been like this from its start"
        )
    return saved


def _check_never_saved(workdir: pathlib.Path, where: epath.Path) -> None:
    """Refuses to begin anew, which empties the logs, where checkpoints are gone that there must have been."""
    if not (workdir / "config.json").exists() or not (workdir / "metrics.jsonl").exists():
        return
    config, _ = read_workdir(workdir)
    trained = [record for record in read_metrics(workdir / "metrics.jsonl") if record["kind"] == "train"]
    steps = [record["step"] for record in trained]
    # The ends of stages are saved too. A second save begins once the first is on disk; a run may be killed before.
    saves = (workdir / "export").exists() or len({record["stage"] for record in trained}) > 2
    if steps and (saves or steps[-1] > 2 * config["checkpoint"]["every"]):
        raise UserError(
            f"--workdir {workdir}: its metrics.jsonl tells of {steps[-1]} steps, but {where} has no checkpoint: mount "
            "its disk, or restore the folder; to begin anew use another --workdir, or delete metrics.jsonl"
        )


def _check_can_go_on(setup: Setup, workdir: pathlib.Path, stage: str) -> None:
    """Refuses what no force can continue: a checkpoint whose stage, ids or arrays mean nothing to this run."""
    if stage not in setup.config.stages:
        raise UserError(f"--force: the run of --workdir {workdir} is in stage {stage}, which config.stages leaves out")
    if vocabulary_fingerprint(workdir / "tokenizer") != setup.tokenizer.vocabulary_fingerprint():
        raise UserError(
            f"--force: the run of --workdir {workdir} has another tokenizer than {setup.student}, and token ids would "
            "mean other text: use another --workdir"
        )
    config, facts = read_workdir(workdir)
    weights = _weights(setup)
    moved = config["student"] != setup.config.student or facts.get("weights", weights) != weights
    if setup.generator.config.lora and moved:
        raise UserError(
            f"--force: the adapters of --workdir {workdir} stand on the weights of {config['student']} as they were "
            f"then, which its checkpoints do not hold, and config.student is {setup.config.student}: use another "
            "--workdir"
        )
    state = abstract_state(setup, stage)
    networks = {"generator": state.generator, "discriminator": state.discriminator}
    for network in (name for name, part in networks.items() if part is not None):
        before, now = (_computed(model) for model in (network_model(config, facts, network), getattr(setup, network)))
        for name, (old, new) in _changes(before, now).items():
            raise UserError(
                f"--force: the checkpoint of --workdir {workdir} is of other networks: the {network}'s {name} was "
                f"{_shown(old)}, and is {_shown(new)}: use another --workdir"
            )
    given = named_leaves({name: part.params for name, part in networks.items() if part is not None})
    with contextlib.closing(Checkpoints.of(workdir, setup.config)) as checkpoints:
        step = checkpoints.steps()[-1]
        try:
            found = checkpoints.shapes(step)
        except Exception as error:
            if not is_damage(error):
                raise
            raise UserError(
                f"--force: the checkpoint of step {step} in --workdir {workdir} is damaged ({first_line(error)}): run "
                "once without --force, which goes on from the one before"
            ) from error
    for name, (old, new) in _changes(found, {name: leaf.shape for name, leaf in given.items()}).items():
        raise UserError(
            f"--force: the checkpoint of --workdir {workdir} is of other networks, as {name} shows ({old} → {new}): "
            "use another --workdir"
        )


def _computed(model: Model) -> dict[str, Any]:
    """All that a network's values depend on, but for its parameters; another precision or remat may go on with them."""
    fields = dataclasses.asdict(model.config)
    return {name: value for name, value in fields.items() if name not in ("dtype", "remat")}


def prepare_workdir(setup: Setup, workdir: pathlib.Path, alone: WorkdirLock, *, begins: bool) -> None:
    """Makes the workdir with all that later commands read: they need the workdir alone.

    `config.json` (resolved), `run.json` (what `_facts` says), `tokenizer/`; and the directory of its checkpoints. Of
    several processes the first one writes, and the others look.

    Args:
      alone: is taken where the workdir is new.
      begins: no checkpoint is there to go on from, and so no log of it.

    Raises:
      UserError: it cannot be written, or another process does not see it, or trains there.
    """
    directory = setup.config.checkpoint.directory
    with processes.together():
        config, facts = setup.config.to_dict(), _facts(setup)
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


def export_network(workdir: pathlib.Path, network: str, params: Params, step: int, out: pathlib.Path) -> None:
    """Writes a network as a directory that transformers loads: weights, configs, tokenizer and model card.

    Adapters are merged into the student's weights, which are read anew, and stand in `adapter/` for PEFT too.

    Args:
      params: those that are trained.
      step: of the run, that the parameters are of; the card tells of no later one.
    """
    config, facts = read_workdir(workdir)
    model, metrics, apart = network_model(config, facts, network), workdir / "metrics.jsonl", None
    if model.config.lora:
        apart = Adapters(params, model.config.lora, config["student"])
        params = merged_params(resolve_model(config["student"]), lora.frozen(model.abstract_params()), apart)
    card = model_card(
        kind=network,
        base_model=_base_model(network, config),
        config=config,
        data_counts=facts["data"],
        figures=read_heldout(metrics, last_step=step),
        stages=read_stages(metrics, last_step=step),
    )
    save_pretrained(
        out,
        params,
        model.config,
        facts["hf_configs"][network],
        kind=network,
        adapters=apart,
        tokenizer_dir=workdir / "tokenizer",
        generation_config=facts["generation_config"],
        model_card=card,
        dtype=config["export_dtype"],
    )


def _base_model(network: str, config: dict[str, Any]) -> str:
    """The hub id or path of the weights that a network started from; "" where they were random."""
    named = discriminator_checkpoint(config) if network == "discriminator" else None
    return named or ("" if config["random_init"] else config["student"])


def _facts(setup: Setup) -> dict[str, Any]:
    """What run.json holds: the networks' Hugging Face configs, the stages' lengths, and what the data was."""
    splits = {"training": setup.train, "held-out": setup.heldout}
    return {
        "hf_configs": setup.hf_configs,
        "generation_config": _generation_config(setup),
        "stages": stage_lengths(setup),
        "tokenizer": setup.tokenizer.fingerprint(),
        "weights": _weights(setup),
        "data": _data_counts(setup),
        "contents": {split: _fingerprint(data) for split, data in splits.items() if data is not None},
    }


def _weights(setup: Setup) -> dict[str, str]:
    """Fingerprints of those that the run reads, at its start and later: a name may come to mean others."""
    read = {} if setup.config.random_init else {"student": setup.student}
    if setup.discriminator_init is not None:
        read["discriminator"] = setup.discriminator_init
    return {network: weights_fingerprint(path) for network, path in read.items()}


def _identity(config: Any, facts: dict[str, Any], fields: list[str]) -> dict[str, Any]:
    """What makes a run what it is, named for messages."""
    flat = {f"config.{field}": _value(config, field) for field in fields}
    for network, hf_config in facts["hf_configs"].items():
        flat |= {f"{network}'s {name}": value for name, value in hf_config.items()}
    flat |= {f"{network}'s weights": value for network, value in facts.get("weights", {}).items()}
    flat |= {"tokenizer and chat template": facts.get("tokenizer")} | facts["data"]
    return flat | {f"text of the {split} data": value for split, value in facts.get("contents", {}).items()}


def _value(config: Any, field: str) -> Any:
    value = field_value(config, field)
    return _EARLIER.get(field) if value is None else value


def _changes(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    old, new = (json.loads(json.dumps(side)) for side in (old, new))  # tuples as JSON has them
    names = dict.fromkeys([*old, *new])
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def _shown(value: Any) -> str:
    """On one line, and short: a chat template can be pages long."""
    text, half = repr(value), _SHOWN // 2
    return text if len(text) <= _SHOWN else f"{text[:half]}…{text[-half:]}"


def _fingerprint(data: Dataset) -> str:
    """Hash of all the token ids of a dataset."""
    return _digest(data.prompts.lengths, data.prompts.flat, data.answers.lengths, data.answers.flat)


def _digest(*parts: Any) -> str:
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
