"""A plan as text for people, and as values for programs."""

from __future__ import annotations

import dataclasses
from typing import Any

from gadjax.parallel.chips import GIB
from gadjax.planning.estimate import ProgramEstimate
from gadjax.planning.measured import Traffic
from gadjax.planning.planner import Plan
from gadjax.planning.search import Suggestion

_BOUNDS = ("compute", "memory", "links", "host")
_SAMPLED = ("rollout", "held-out answers", "two-sample answers")
_MOVED = ("weights for sampling", "held-out weights for sampling")
_DISCRIMINATOR = ("discriminator update", "baseline of the discriminator", "rewards", "held-out scores")
_COLLECTIVES_SHOWN, _ARRAYS_SHOWN = 4, 3


def as_text(plan: Plan, suggestion: Suggestion | None = None, *, details: bool = False) -> str:
    """The plan as plain text, the same on every terminal and in the docs.

    Args:
      plan: what to show.
      suggestion: of a search that found the plan.
      details: shows each program's operations, traffic, largest arrays and collectives too.
    """
    lines = [*_verdict(plan)]
    if suggestion:
        found = suggestion.flags or "nothing: the config's own settings are the best found"
        lines.append(f"suggested, of {suggestion.looked_at} plans: {found}")
    lines += [*_whole_run(plan), "", *_settings(plan), "", _table(plan, details), ""]
    for program in plan.programs if details else ():
        lines += [*_details(program), ""]
    lines += _assumed(plan)
    return "\n".join(lines if details else [*lines, "--details: operations, traffic and the largest arrays."])


def _whole_run(plan: Plan) -> list[str]:
    """Time, cost and disk of the run."""
    steps = [
        f"{stage} " + ("unknown" if seconds is None else f"{seconds:.1f} s")
        for stage, seconds in ((stage, plan.step_seconds(stage)) for stage in plan.config.stages)
    ]
    lines = [f"a step at least: {', '.join(steps)}"]
    hours, cost = plan.hours, plan.cost
    if hours is not None:
        days = f" ({hours / 24:.1f} days)" if hours >= 24 else ""
        lines.append(f"the run, by these steps: {hours:.1f} hours{days}, {sum(plan.lengths.values())} steps")
    elif lacking := [stage for stage in plan.config.stages if not plan.lengths.get(stage)]:
        lines.append(
            f"the run: --rows=N, the usable rows of data.train, gives the length of {', '.join(lacking)}, in epochs"
        )
    if cost is not None:
        lines.append(f"cost, by these hours: {cost:,.0f}, at {plan.price:g} for a device and an hour")
    kept = plan.config.checkpoint.keep + bool(plan.config.checkpoint.best) + 1
    more = " and those of checkpoint.keep_every" * bool(plan.config.checkpoint.keep_every)
    lines.append(
        f"disk: {plan.checkpoint_bytes / 1e9:.1f} GB a checkpoint, up to {kept} at once{more}; exports "
        f"{plan.export_bytes / 1e9:.1f} GB"
    )
    return lines


def _settings(plan: Plan) -> list[str]:
    config, data = plan.config, plan.config.data
    meshes = [" x ".join(f"{name} {size}" for name, size in mesh.items()) for mesh in (plan.mesh, plan.decoding_mesh)]
    offloaded = _offloaded(plan)
    return [
        f"{config.student}: {plan.parameters:,} parameters; stages {', '.join(config.stages)}",
        f"{plan.target.name}: {plan.target.count} devices of {gib(plan.memory)}",
        f"mesh: {meshes[0]}; sampling: {meshes[1]}",
        f"batch: {config.batch_size} prompts x {config.rollout.num_samples} samples, prompt {data.max_prompt_length} + "
        f"response {data.max_response_length} tokens, all at full length",
        f"micro-batches: {', '.join(f'{name} {parts}' for name, parts in plan.micro_batches.items())}; "
        f"remat: {config.remat}; "
        f"in host memory while idle: {', '.join(offloaded) or 'nothing'}",
        f"key-value cache: {plan.slots} samples at once",
        *([f"in host memory: up to {gib(plan.host)} a process"] if offloaded else []),
    ]


def _assumed(plan: Plan) -> list[str]:
    """What the seconds and the peaks stand on."""
    chip = plan.target.chip
    rates = f"{chip.flops / 1e12:.3g} TFLOP/s, {chip.bandwidth / 1e9:.0f} GB/s of memory"
    rates += f", {chip.link / 1e9:.0f} GB/s of links"
    if chip.network:
        rates += f", {chip.network / 1e9:.0f} GB/s between hosts"
    if _offloaded(plan):
        rates += f", {chip.host / 1e9:.0f} GB/s to the host"
    return [
        f"assumed: {rates} per device, all at their peak; all but the host's overlap; prompts and responses at full "
        "length; no time for packing and checkpoints.",
        f"not in those seconds: {_measuring(plan)}.",
        f"peak = the program + the state that stays on the device beside it + {gib(chip.reserve)} for the runtime.",
    ]


def _offloaded(plan: Plan) -> list[str]:
    return [name for name in ("optimizer", "networks") if plan.config.offload[name]]


def as_json(plan: Plan, suggestion: Suggestion | None = None) -> dict[str, Any]:
    """The plan as JSON values: bytes, operations and seconds."""
    return {
        "student": plan.config.student,
        "topology": plan.target.name,
        "devices": plan.target.count,
        "memory": plan.memory,
        "reserve": plan.target.chip.reserve,
        "mesh": plan.mesh,
        "decoding_mesh": plan.decoding_mesh,
        "slots": plan.slots,
        "fits": not plan.misfits,
        "suggested": suggestion.changes if suggestion else None,
        "step_seconds": {stage: plan.step_seconds(stage) for stage in plan.config.stages},
        "hours": plan.hours,
        "cost": plan.cost,
        "checkpoint_bytes": plan.checkpoint_bytes,
        "export_bytes": plan.export_bytes,
        "programs": [dataclasses.asdict(program) | {"bound": program.bound} for program in plan.programs],
    }


def _measuring(plan: Plan) -> str:
    if not plan.heldout_prompts:
        return "nothing; config.data.heldout names no held-out prompts, nor does config.data.heldout_share take any"
    test = ", and the two-sample test" * bool(plan.config.evaluation.two_sample_folds)
    return f"measuring on {plan.heldout_prompts} held-out prompts{test}"


def _table(plan: Plan, details: bool) -> str:
    """One line a program."""
    rows: list[tuple[str, ...]] = [("program", "peak", "of memory", "seconds", "bound by")]
    if details:
        rows = [("program", "peak", "of memory", "PFLOP", "remat", "GB moved", *(f"{of} s" for of in _BOUNDS))]
    for program in plan.programs:
        found, seconds = program.compiled, program.compiled.seconds
        memory = program.name, gib(program.peak), f"{program.peak / plan.memory:.0%}"
        if not details:
            parts = {**seconds, "host": program.host_seconds} if seconds else {}
            slowest = max(parts, key=lambda name: parts[name]) if parts else "-"
            rows.append((*memory, "-" if program.bound is None else f"{program.bound:.2f}", slowest))
            continue
        rows.append(
            (
                *memory,
                f"{found.flops / 1e15:.3g}",
                f"x {found.flops / found.flops_without_remat:.2f}" if found.flops else "-",
                "-" if found.moved is None else f"{found.moved / 1e9:.0f}",
                *([f"{value:.2f}" for value in seconds.values()] if seconds else ["-"] * 3),
                f"{program.host_seconds:.2f}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells[1:]]))
    return "\n".join(lines)


def _details(program: ProgramEstimate) -> list[str]:
    found = program.compiled
    largest = [f"{shape} {gib(size)}{_origin(name)}" for shape, size, name in found.largest[:_ARRAYS_SHOWN]]
    lines = [f"{program.name}: program {gib(found.program)}, other state {gib(program.resident)}"]
    lines += [f"  largest: {'; '.join(largest)}"] if largest else []
    lines += [f"  {_collective(traffic)}" for traffic in found.collectives[:_COLLECTIVES_SHOWN]]
    if found.positions:
        lines.append(f"  logits and the like: of {found.positions} positions at once")
    if (more := len(found.collectives) - _COLLECTIVES_SHOWN) > 0:
        lines.append(f"  and {more} smaller kinds of collectives")
    return lines


def _collective(traffic: Traffic) -> str:
    where = " in the token loop" if traffic.in_token_loop else ""
    return f"{traffic.times} x {traffic.op} of {traffic.bytes / 2**20:.2f} MiB{where}{_origin(traffic.origin)}"


def _origin(op_name: str) -> str:
    name = op_name.replace("\\", "")  # XLA escapes quotes in names
    return f" ({name})" if name else ""


def _verdict(plan: Plan) -> list[str]:
    if not plan.misfits:
        worst = max(plan.programs, key=lambda program: program.peak)
        return [f"fits: the most is {worst.peak / plan.memory:.0%} of memory, in the {worst.name}"]
    return [
        f"does not fit: the {program.name} needs {gib(program.peak)} of {gib(plan.memory)}: {_remedy(plan, program)}"
        for program in plan.misfits
    ]


def _remedy(plan: Plan, program: ProgramEstimate) -> str:
    config = plan.config
    remedies = []
    if program.name in _SAMPLED:
        remedies.append(f"lower config.rollout.slots (now {plan.slots}) or raise config.mesh.decode_tensor")
    elif program.name in _MOVED:
        remedies.append("raise config.mesh.decode_tensor")
    elif config.remat != "full":
        remedies.append("set config.remat=full")
    elif not program.name.startswith("two-sample"):
        network = "discriminator" if program.name in _DISCRIMINATOR else "generator"
        remedies.append(f"raise config.micro_batches.{network} (now {plan.micro_batches[network]})")
    if program.name.startswith("two-sample"):
        remedies.append("set config.evaluation.two_sample_folds=0")
    if not config.offload.optimizer:
        remedies.append("set config.offload.optimizer=True")
    elif not config.offload.networks:
        remedies.append("set config.offload.networks=True")
    return ", ".join(remedies) + ", or use more devices; --suggest searches"


def gib(size: float) -> str:
    """Bytes in GiB, for people."""
    return f"{size / GIB:.1f} GiB"
