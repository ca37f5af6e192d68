"""gadjax: black-box LLM distillation in JAX by Generative Adversarial Distillation (arXiv 2511.10643)."""

from gadjax.version import __version__

__all__ = ["__version__"]
