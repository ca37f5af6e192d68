"""A run's config: its fields, the checks, and the configs that gadjax ships."""

from gadjax.config.fields import default_config
from gadjax.config.shipped import load_config

__all__ = ["default_config", "load_config"]
