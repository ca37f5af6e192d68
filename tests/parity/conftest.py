"""Peers to compare with. Everything here needs torch and is skipped without it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.smollm2 import smollm2  # noqa: F401


@pytest.fixture(scope="module")
def quick_start(quick_compile: None) -> Iterator[None]:
    """Tiny models: compiling them well costs more than it saves, and threads get in each other's way."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def data() -> Any:
    """The batch of the tests against PyTorch."""
    from tests.parity.torch_oracle import ragged_data

    return ragged_data()
