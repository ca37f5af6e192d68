"""The policy update against a reference's parameters, as one function."""

from __future__ import annotations

from typing import Any

from gadjax.distill.updates import reference_logprobs, update_policy


def update_against(method: Any, state: Any, reference: Any, rows: Any, *rest: Any, base: Any = None) -> Any:
    """`update_policy` whose reference is given by its parameters; `rest`: sampled, advantages, teacher."""
    logprobs = reference_logprobs(method, reference, rows, base=base)
    return update_policy(method, state, logprobs, rows, *rest, base=base)
