"""Which rotary position embedding a model has, read from its `config.json`. `gadjax.models.rotary` computes it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from gadjax.models.config_reader import FULL, SLIDING, Reader

Kind = Literal["default", "linear", "llama3", "yarn", "longrope"]
ROPE_KINDS = ("default", "linear", "llama3", "yarn", "dynamic")

_ORIGINAL = "original_max_position_embeddings"


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary position embedding.

    Attributes:
      theta: base of the frequencies.
      kind: how the context was stretched: "default" (not at all), "linear" (every frequency divided by `factor`),
        "llama3" (Llama 3.1: frequencies of long wavelengths divided by `factor`, and a blend between the two factors),
        "yarn" (arXiv 2309.00071: the same, blended over channels) or "longrope" (arXiv 2402.13753: each frequency
        divided by a factor of its own).
      original_max_position: tokens of the context before it was stretched ("llama3", "yarn" and "longrope").
      beta_fast, beta_slow: turns over the original context between which "yarn" blends.
      factors: the factor of each frequency ("longrope"), for sequences of up to `original_max_position` tokens.
      attention_factor: queries and keys are multiplied by it as they are turned.
      partial: share of each head's channels that are turned, from the first one on.
    """

    theta: float = 10_000.0
    kind: Kind = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    factors: tuple[float, ...] = ()
    attention_factor: float = 1.0
    partial: float = 1.0

    @property
    def exact_length(self) -> float:
        """Tokens of the longest sequence that these frequencies are for."""
        return self.original_max_position if self.kind == "longrope" else math.inf


PLAIN_ROPE = Rope()


def rope_of(read: Reader, theta: float | None = Rope.theta) -> Rope:
    """The one embedding of a model, from `rope_theta` and `rope_scaling` (transformers 4) or `rope_parameters` (5).

    Args:
      read: the config.
      theta: base of the frequencies where the config names none; None if it must.

    Raises:
      UserError: layers have different embeddings, or the kind is not supported.
    """
    name, fields = _fields(read)
    if any(isinstance(value, dict) for value in fields.values()):
        read.fail(f"{name} is {fields!r}; only one rotary embedding, the same in every layer, is supported")
    return _rope(read, name, fields, read.positive("rope_theta", theta, _with(read, fields)))


def ropes_by_kind(read: Reader, local_theta: str) -> dict[str, Rope]:
    """The embeddings of full and of sliding layers, by the names of `layer_types`.

    In configs of transformers 4, what stretches the context is for the full layers only.

    Args:
      read: the config.
      local_theta: the field of such a config that has the base of the sliding layers.

    Raises:
      UserError: the config gives one embedding for all layers, or the kind is not supported.
    """
    if read.config.get("rope_scaling") or not read.config.get("rope_parameters"):
        name, fields = _fields(read)
        full = _rope(read, name, fields, read.positive("rope_theta", None, _with(read, fields)))
        return {FULL: full, SLIDING: Rope(read.positive(local_theta))}
    given = read.config["rope_parameters"]
    if not isinstance(given, dict) or not all(isinstance(given.get(kind), dict) for kind in (FULL, SLIDING)):
        read.fail(f"rope_parameters is {given!r}; it must have the embeddings of {FULL} and of {SLIDING}")
    names = {kind: f"rope_parameters.{kind}" for kind in (FULL, SLIDING)}
    return {
        kind: _rope(read, name, given[kind], read.positive("rope_theta", None, given[kind]))
        for kind, name in names.items()
    }


def phi_rope(read: Reader, head_dim: int) -> Rope:
    """Phi's embedding: a part of each head's channels, of the kind "default" or "longrope".

    LongRoPE has two lists of factors. transformers takes the short ones, unless the longest sequence of the batch has
    more than the original number of positions. Here there are the short ones only, and such sequences are refused
    (`ModelConfig.check_length`).
    """
    name, fields = _fields(read)
    theta = read.positive("rope_theta", Rope.theta, _with(read, fields))
    partial = read.positive("partial_rotary_factor", 1.0, _with(read, fields))
    turned = int(head_dim * partial)
    if partial > 1 or turned % 2 or not turned:
        read.fail(f"partial_rotary_factor is {partial}, which turns {turned} of {head_dim} channels; they need pairs")
    kind = _kind(fields)
    if kind == "default":
        return Rope(theta, partial=partial)
    if kind not in ("longrope", "su", "yarn"):  # the last two are names that older releases gave it
        read.fail(f"{name} has the type {kind!r}, which is not supported; supported are default, longrope")
    original = read.count(_ORIGINAL, 4096)
    read.positives("long_factor", turned // 2, fields)  # checked, since exports keep the config
    factors = read.positives("short_factor", turned // 2, fields)
    stretch = read.positive("factor", read.count("max_position_embeddings") / original, fields)
    attention = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 and original > 1 else 1.0
    attention = read.positive("attention_factor", attention, fields)
    return Rope(
        theta,
        "longrope",
        original_max_position=original,
        factors=factors,
        attention_factor=attention,
        partial=partial,
    )


def _fields(read: Reader) -> tuple[str, dict[str, Any]]:
    """The field of the config that describes the embedding, and its contents."""
    # If both are given, transformers 5 uses rope_scaling too.
    name = "rope_scaling" if read.config.get("rope_scaling") else "rope_parameters"
    fields = read.config.get(name) or {}
    if not isinstance(fields, dict):
        read.fail(f"{name} is {fields!r}; it must be an object")
    return name, fields


def _with(read: Reader, fields: dict[str, Any]) -> dict[str, Any]:
    """The config's fields, and before them those that describe the embedding, if they are not null."""
    return read.config | {name: value for name, value in fields.items() if value is not None}


def _kind(fields: dict[str, Any]) -> Any:
    return fields.get("rope_type", fields.get("type", "default"))


def _rope(read: Reader, name: str, fields: dict[str, Any], theta: float) -> Rope:
    """The embedding that `fields`, the contents of the field `name`, describe."""
    kind = _kind(fields)
    if kind not in ROPE_KINDS:
        read.fail(f"{name} has the type {kind!r}, which is not supported; supported are {', '.join(ROPE_KINDS)}")
    partial = fields.get("partial_rotary_factor", read.config.get("partial_rotary_factor"))
    if partial not in (None, 1):
        read.fail(f"partial_rotary_factor is {partial!r}; this architecture turns all channels of a head")
    if kind == "default":
        return Rope(theta)
    factor = read.positive("factor", fields=fields)
    if kind == "dynamic":  # stretches sequences of more than max_position_embeddings tokens, which are refused
        return Rope(theta)
    if kind == "linear":
        return Rope(theta, kind, factor)
    original = read.count(_ORIGINAL, read.count(_ORIGINAL, read.count("max_position_embeddings"), fields))
    if kind == "llama3":
        low, high = (read.positive(field, fields=fields) for field in ("low_freq_factor", "high_freq_factor"))
        if not low < high:
            read.fail(f"{name} has low_freq_factor {low}, which must be below high_freq_factor {high}")
        return Rope(theta, kind, factor, low, high, original)
    fast, slow = read.positive("beta_fast", 32.0, fields), read.positive("beta_slow", 1.0, fields)
    if theta <= 1:
        read.fail(f"rope_theta is {theta}; with the type 'yarn' it must be a number above 1")
    if fields.get("truncate") not in (None, True):
        read.fail(f"{name} has truncate {fields['truncate']!r}; only true is supported")
    attention = read.positive("attention_factor", _yarn_attention(read, factor, fields), fields)
    return Rope(
        theta,
        "yarn",
        factor,
        original_max_position=original,
        beta_fast=fast,
        beta_slow=slow,
        attention_factor=attention,
    )


def _yarn_attention(read: Reader, factor: float, fields: dict[str, Any]) -> float:
    """YaRN's attention factor where the config gives none."""
    grown = math.log(factor) if factor > 1 else 0.0
    if fields.get("mscale") and fields.get("mscale_all_dim"):
        over, under = (0.1 * read.positive(field, fields=fields) * grown + 1 for field in ("mscale", "mscale_all_dim"))
        return over / under
    return 0.1 * grown + 1
