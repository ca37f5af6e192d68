"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685): one frozen base, and small trees trained on top of it.

A projection with the kernel W [inputs..., outputs...] and the adapters A [inputs..., rank] ("lora_a") and
B [rank, outputs...] ("lora_b") computes x W + (alpha / rank) (x A) B. A is random and B is zero at the start, so that
fresh adapters change nothing.

With adapters, a network's parameters have two parts: the base, which all networks of a run share, and the trained part,
which is the adapters and the discriminator's scalar head. Without adapters there is no base, and everything is trained.
The functions here take trees with any leaves (arrays, shapes, shardings) whose nodes are dictionaries.
"""

from __future__ import annotations

from typing import Any

Params = dict[str, Any]

ADAPTERS = ("lora_a", "lora_b")
_SCALAR_HEAD, _LM_HEAD = "score", "lm_head"


def trained(params: Params) -> Params:
    """The trained part of a network's tree: all of it if there are no adapters."""
    return _split(params)[1] if has_adapters(params) else params


def frozen(params: Params) -> Params | None:
    """The base in a network's tree, or None if there are no adapters."""
    return _split(params)[0] if has_adapters(params) else None


def join(base: Params | None, params: Params) -> Params:
    """A network's tree, from its base (None if everything is trained) and its trained part.

    A discriminator, recognised by its scalar head, does not get the base's language-model head.
    """
    if base is None:
        return params
    if _SCALAR_HEAD in params:
        base = {name: node for name, node in base.items() if name != _LM_HEAD}
    return _merge(base, params)


def has_adapters(params: Params) -> bool:
    """Whether a tree holds adapters."""
    return any(name in ADAPTERS or (isinstance(node, dict) and has_adapters(node)) for name, node in params.items())


def _split(params: Params) -> tuple[Params, Params]:
    base: Params = {}
    own: Params = {}
    for name, node in params.items():
        if name in ADAPTERS or name == _SCALAR_HEAD:
            own[name] = node
        elif isinstance(node, dict):
            for part, found in zip((base, own), _split(node), strict=True):
                if found:
                    part[name] = found
        else:
            base[name] = node
    return base, own


def _merge(base: Params, params: Params) -> Params:
    both = {name: _merge(base[name], params[name]) for name in base.keys() & params.keys()}
    return {**base, **params, **both}
