"""What models stand on whose parameters are their outputs."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class NoAdapters:
    """Stands in for a `ModelConfig`."""

    lora: None = None


NO_ADAPTERS = NoAdapters()
