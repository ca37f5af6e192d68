"""Puts the shipped configs, and the demo's data, into wheels.

In pyproject.toml, `force-include` would put them into editable wheels too: a second copy, which goes stale.
"""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ShippedConfigs(BuildHookInterface):
    """Adds configs/ as gadjax/configs to a wheel that is installed elsewhere; gadjax/config/shipped.py finds both."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "standard":
            build_data["force_include"]["configs"] = "gadjax/configs"
