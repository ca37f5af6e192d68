"""What differs between the layers of a decoder beside their parameters."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gadjax.models.architecture import ModelConfig
from gadjax.models.rotary import Rotary, rotary_of_layers

_MOST = np.iinfo(np.int32).max


class LayerData(NamedTuple):
    """What differs between layers beside the parameters; with a leading axis of layers where it is scanned."""

    rotary: Rotary
    window: Any  # tokens that a token sees, itself included; None for all


def data_of_layers(config: ModelConfig, length: int) -> tuple[Any, LayerData | None]:
    """What all layers share, or None and what each layer has of its own; for sequences of up to `length` tokens."""
    windows, rotaries = config.windows(length), rotary_of_layers(config.ropes, config.head_dim)
    if len(set(zip(config.ropes, windows, strict=True))) == 1:
        return LayerData(rotaries[0], windows[0]), None
    sizes = [_MOST if window is None else window for window in windows]
    limits = np.array(sizes, np.int32) if any(windows) else None
    return None, LayerData(jax.tree.map(lambda *layers: jnp.stack(layers), *rotaries), limits)
