"""A plan for people, and for programs."""

from __future__ import annotations

import dataclasses
from typing import Any

from gadjax.planning.estimate import Estimate, Traffic, gib
from gadjax.planning.run import Plan

_COLLECTIVES_SHOWN = 4


def as_text(plan: Plan) -> str:
    """The plan as lines of plain text, the same on every terminal and in the docs."""
    config, chip = plan.config, plan.target.chip
    data = config.data
    meshes = [" x ".join(f"{name} {size}" for name, size in mesh.items()) for mesh in (plan.mesh, plan.decoding_mesh)]
    offloaded = [name for name in ("optimizer", "networks") if config.offload[name]]
    lines = [
        f"{config.student}: {plan.parameters:,} parameters; stages {', '.join(config.stages)}",
        f"{plan.target.name}: {plan.target.count} devices of {gib(plan.memory)}",
        f"mesh: {meshes[0]}; sampling: {meshes[1]}",
        f"batch: {config.batch_size} prompts x {config.rollout.num_samples} samples, prompt {data.max_prompt_length} + "
        f"response {data.max_response_length} tokens, all at full length",
        f"micro-batches: {', '.join(f'{name} {parts}' for name, parts in plan.micro_batches.items())}; "
        f"remat: {config.remat}; "
        f"in host memory while idle: {', '.join(offloaded) or 'nothing'}",
        f"key-value cache: {plan.slots} samples at once",
        "",
        _table(plan),
        "",
    ]
    for program in plan.programs:
        lines += [*_details(program), ""]
    for stage in config.stages:
        lines.append(f"a step of {stage}: {plan.step_seconds(stage):.1f} s at least")
    rates = f"{chip.flops / 1e12:.0f} TFLOP/s, {chip.bandwidth / 1e9:.0f} GB/s of memory"
    rates += f", {chip.link / 1e9:.0f} GB/s of links"
    if chip.network:
        rates += f", {chip.network / 1e9:.0f} GB/s between hosts"
    left_out = "packing, checkpoints, measuring" + (", moving to and from host memory" if offloaded else "")
    lines += [
        f"assumed: {rates} per device, all at their peak and overlapping; prompts and responses at full length; "
        f"no time for {left_out}.",
        f"peak = the program + the state that stays on the device beside it + {gib(chip.reserve)} for the runtime.",
    ]
    return "\n".join(lines + _verdict(plan))


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain values: bytes, operations and seconds."""
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
        "step_seconds": {stage: plan.step_seconds(stage) for stage in plan.config.stages},
        "programs": [dataclasses.asdict(program) | {"bound": program.bound} for program in plan.programs],
    }


def _table(plan: Plan) -> str:
    rows = [("program", "peak", "of memory", "PFLOP", "remat", "GB moved", "compute s", "memory s", "links s")]
    for program in plan.programs:
        seconds = [f"{value:.2f}" for value in program.seconds.values()] if program.seconds else ["-"] * 3
        rows.append(
            (
                program.name,
                gib(program.peak),
                f"{program.peak / plan.memory:.0%}",
                f"{program.flops / 1e15:.3g}",
                f"x {program.flops / program.flops_without_remat:.2f}",
                f"{program.moved / 1e9:.0f}" if program.moved is not None else "-",
                *seconds,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )


def _details(program: Estimate) -> list[str]:
    lines = [f"{program.name}: program {gib(program.program)}, other state {gib(program.resident)}"]
    lines.append(
        "  largest: " + "; ".join(f"{shape} {gib(size)}{_origin(name)}" for shape, size, name in program.largest[:3])
    )
    shown = program.collectives[:_COLLECTIVES_SHOWN]
    lines += [f"  {_collective(traffic)}" for traffic in shown]
    if len(program.collectives) > len(shown):
        lines.append(f"  and {len(program.collectives) - len(shown)} smaller kinds of collectives")
    return lines


def _collective(traffic: Traffic) -> str:
    where = " in the token loop" if traffic.in_token_loop else ""
    return f"{traffic.times} x {traffic.op} of {traffic.bytes / 2**20:.2f} MiB{where}{_origin(traffic.origin)}"


def _origin(op_name: str) -> str:
    return f" ({op_name})" if op_name else ""


def _verdict(plan: Plan) -> list[str]:
    if not plan.misfits:
        worst = max(plan.programs, key=lambda program: program.peak)
        return [f"fits: the most is {worst.peak / plan.memory:.0%} of memory, in the {worst.name}"]
    return [
        f"does not fit: the {program.name} needs {gib(program.peak)} of {gib(plan.memory)}: {_remedy(plan, program)}"
        for program in plan.misfits
    ]


def _remedy(plan: Plan, program: Estimate) -> str:
    config = plan.config
    remedies = []
    if program.name == "rollout":
        remedies.append(f"lower config.rollout.slots (now {plan.slots}) or raise config.mesh.decode_tensor")
    elif config.remat != "full":
        remedies.append("set config.remat=full")
    else:
        network = "discriminator" if program.name in ("discriminator update", "rewards") else "generator"
        remedies.append(f"raise config.micro_batches.{network} (now {plan.micro_batches[network]})")
    if not config.offload.optimizer:
        remedies.append("set config.offload.optimizer=True")
    elif not config.offload.networks:
        remedies.append("set config.offload.networks=True")
    return ", ".join(remedies) + ", or use more devices; --suggest searches"
