"""Whether a run may continue in a workdir: the run that began there must be the one that the config describes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

from etils import epath

from gadjax.config.check import field_value
from gadjax.data.tokenizer import vocabulary_fingerprint
from gadjax.errors import UserError, first_line
from gadjax.metrics import read_metrics
from gadjax.models.model import Model
from gadjax.models.weights import named_leaves
from gadjax.parallel import processes
from gadjax.setup.blueprint import abstract_state
from gadjax.setup.prepare import Setup
from gadjax.workdir.checkpoints import Checkpoints
from gadjax.workdir.facts import NETWORKS, digest, network_model, read_workdir, run_facts, weights_facts
from gadjax.workdir.place import check_place
from gadjax.workdir.storage import is_damage

# The fields that identify a run. All other fields (lengths of stages, learning rates, evaluation, mesh, ...) may change
# when a run continues. Data files may move, as their contents are compared.
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
    "data.heldout_share",
    "data.chat_template",
    "data.template_args",
    "data.template_date",
    "rollout.num_samples",
    "discriminator.init",
    "discriminator.random_init",
    "discriminator.kind",
    "discriminator.baseline",
    "seqkd.train_discriminator",
    "gad.whitening",
    "discriminator.replay_size",
)
# The values that runs had before gadjax had the field.
_EARLIER = {
    "lora.rank": 0,
    "data.heldout_share": 0.0,
    "discriminator.random_init": False,
    "discriminator.kind": "score",
    "discriminator.baseline": "policy",
    "seqkd.train_discriminator": False,
    "gad.whitening": "group",
}
_PARTS = ("discriminator.kind", "discriminator.baseline", "seqkd.train_discriminator", "gad.whitening")
_SHOWN = 80  # characters of a value in a message


def check_processes(setup: Setup, workdir: pathlib.Path) -> None:
    """Refuses processes that would not train the same run.

    Raises:
      UserError: their workdirs, configs, networks, tokenizers or data differ, or the checkpoints that they see.
    """
    if processes.count() == 1:
        return
    with processes.together(), contextlib.closing(Checkpoints.of(workdir, setup.config)) as checkpoints:
        parts = {"config": setup.config.to_dict(), **run_facts(setup), "workdir": str(workdir)}
        parts["checkpoints"] = checkpoints.steps()
        parts["callbacks"] = bool(setup.extensions.callbacks)  # after a step all processes ask whether one ends the run
        for name in ("origins", "teachers"):  # of model cards alone
            del parts[name]
    processes.check_equal({name: digest(json.dumps(value, sort_keys=True).encode()) for name, value in parts.items()})


def check_workdir(
    setup: Setup, workdir: pathlib.Path, *, force: bool = False, say: Callable[[str], None] = print
) -> list[int]:
    """Refuses to continue a workdir's run as a different run. Writes nothing.

    Args:
      setup: the run that the config describes.
      workdir: the run's folder.
      force: continue as a different run nevertheless, if the checkpoint can be used.
      say: shows the warning that names what differs, with `force`.

    Returns:
      The steps of the run's checkpoints, ascending.

    Raises:
      UserError: a field of `_FIXED`, the stages up to the current one, a network, the tokenizer or the data has
        changed; or with `force`, the networks, the tokenizer or the stages do not fit the checkpoint. Or the
        checkpoints are missing, or belong to another run.
    """
    # Find the checkpoints, and the stage of the newest one.
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
    # Compare what the workdir records with what the config describes. A field or fact that an earlier version of gadjax
    # did not record cannot have changed.
    config, facts = read_workdir(workdir)
    fields = [field for field in _FIXED if _value(config, field) is not None]
    facts = {"extensions": {}} | facts  # earlier versions had none
    known = {name: value for name, value in run_facts(setup).items() if name in facts}
    changes = _changes(_identity(config, facts, fields), _identity(setup.config, known, fields))
    # The stages after the current one may change.
    begun = config["stages"].index(stage) + 1
    if config["stages"][:begun] != list(setup.config.stages[:begun]):
        changes["config.stages"] = ",".join(config["stages"]), ",".join(setup.config.stages)
    # A student with random weights may move: only its architecture and tokenizer are read, and they have not changed.
    if config["random_init"] and changes.keys() == {"config.student"}:
        return saved
    if changes:
        shown = "; ".join(f"{what}: {_shown(old)} → {_shown(new)}" for what, (old, new) in changes.items())
        if not force:
            raise UserError(f"--workdir {workdir} holds another run ({shown}): use another --workdir, or --force")
        if obstacle := _obstacle(setup, workdir, stage):
            raise UserError(f"--force: {obstacle}")
        say(
            f"warning: --force: the run in {workdir} goes on as another one ({shown}); its steps count on, and the "
            "data continues where it would be if the run had been like this from its start"
        )
    return saved


def _check_never_saved(workdir: pathlib.Path, where: epath.Path) -> None:
    """Refuses to start anew, which deletes the logs, if the logs show that checkpoints must have existed."""
    if not (workdir / "config.json").exists() or not (workdir / "metrics.jsonl").exists():
        return
    config, _ = read_workdir(workdir)
    trained = [record for record in read_metrics(workdir / "metrics.jsonl") if record["kind"] == "train"]
    steps = [record["step"] for record in trained]
    # The ends of stages are saved too. A second save starts when the first is on disk, and a run may be killed earlier.
    saves = (workdir / "export").exists() or len({record["stage"] for record in trained}) > 2
    if steps and (saves or steps[-1] > 2 * config["checkpoint"]["every"]):
        raise UserError(
            f"--workdir {workdir}: its metrics.jsonl tells of {steps[-1]} steps, but {where} has no checkpoint: mount "
            "its disk, or restore the folder; to begin anew use another --workdir, or delete metrics.jsonl"
        )


def _obstacle(setup: Setup, workdir: pathlib.Path, stage: str) -> str | None:
    """Why not even --force can continue from the newest checkpoint, or None if it can."""
    if stage not in setup.config.stages:
        return f"the run of --workdir {workdir} is in stage {stage}, which config.stages leaves out"
    # Token ids must mean the same text.
    if vocabulary_fingerprint(workdir / "tokenizer") != setup.tokenizer.vocabulary_fingerprint():
        return (
            f"the run of --workdir {workdir} has another tokenizer than {setup.student}, and token ids would mean "
            "other text: use another --workdir"
        )
    # Adapters must stand on the weights that they were trained on, which a checkpoint does not hold.
    config, facts = read_workdir(workdir)
    weights = weights_facts(setup)
    moved = config["student"] != setup.config.student or facts.get("weights", weights) != weights
    if setup.generator.config.lora and moved:
        return (
            f"the adapters of --workdir {workdir} stand on the weights of {config['student']} as they were then, which "
            f"its checkpoints do not hold, and config.student is {setup.config.student}: use another --workdir"
        )
    # The checkpoint must have the parts of the state that the run needs.
    for field in _PARTS:
        if (old := _value(config, field)) != (new := _value(setup.config, field)):
            return (
                f"config.{field} was {old} and is {new}, so the checkpoint of --workdir {workdir} has other parts than "
                "the run needs: use another --workdir"
            )
    # The networks must compute the same.
    state = abstract_state(setup, stage)
    networks = {network: part for network in NETWORKS if (part := getattr(state, network)) is not None}
    others = f"the checkpoint of --workdir {workdir} is of other networks"
    for network in networks:
        before, now = (_computed(model) for model in (network_model(config, facts, network), getattr(setup, network)))
        for name, (old, new) in _changes(before, now).items():
            return f"{others}: the {network}'s {name} was {_shown(old)}, and is {_shown(new)}: use another --workdir"
    # The checkpoint must be readable, and its arrays must have the networks' shapes.
    with contextlib.closing(Checkpoints.of(workdir, setup.config)) as checkpoints:
        step = checkpoints.steps()[-1]
        try:
            found = checkpoints.shapes(step)
        except Exception as error:
            if not is_damage(error):
                raise
            return (
                f"the checkpoint of step {step} in --workdir {workdir} is damaged ({first_line(error)}): run once "
                "without --force, which goes on from the one before"
            )
    given = named_leaves({network: part.params for network, part in networks.items()})
    for name, (old, new) in _changes(found, {name: leaf.shape for name, leaf in given.items()}).items():
        return f"{others}, as {name} shows ({old} → {new}): use another --workdir"
    return None


def _computed(model: Model) -> dict[str, Any]:
    """What a network's outputs depend on beside its parameters. Precision and remat may change when a run continues."""
    fields = dataclasses.asdict(model.config)
    return {name: value for name, value in fields.items() if name not in ("dtype", "remat")}


def _identity(config: Any, facts: dict[str, Any], fields: list[str]) -> dict[str, Any]:
    """The values that identify a run, by names for messages."""
    flat = {f"config.{field}": _value(config, field) for field in fields}
    for network, hf_config in facts["hf_configs"].items():
        flat |= {f"{network}'s {name}": value for name, value in hf_config.items()}
    flat |= {f"{network}'s weights": value for network, value in facts.get("weights", {}).items()}
    flat |= {f"{name} (in Python)": value for name, value in facts.get("extensions", {}).items()}
    flat |= {"tokenizer and chat template": facts.get("tokenizer")} | facts["data"]
    return flat | {f"text of the {split} data": value for split, value in facts.get("contents", {}).items()}


def _value(config: Any, field: str) -> Any:
    value = field_value(config, field)
    return _EARLIER.get(field) if value is None else value


def _changes(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The old and the new value of each name whose values differ, compared as JSON, which has no tuples."""
    old, new = (json.loads(json.dumps(side)) for side in (old, new))
    return {name: (old.get(name), new.get(name)) for name in {**old, **new} if old.get(name) != new.get(name)}


def _shown(value: Any) -> str:
    """A value on one line, cut in the middle if it is long: a chat template can be pages long."""
    text, half = repr(value), _SHOWN // 2
    return text if len(text) <= _SHOWN else f"{text[:half]}…{text[-half:]}"
