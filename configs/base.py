"""Every field of a run at its default: the paper's values (arXiv 2511.10643).

docs/config.md describes the fields, as do `gadjax config --fields` and gadjax/config/fields.py, which declares them. A
config of your own is a file like configs/demo.py: it takes the defaults and overrides what it needs. `gadjax config
qwen7b > mine.py` copies a shipped config, and the copy works in any folder.

    from gadjax.config import default_config

    def get_config():
        config = default_config()
        config.student = "Qwen/Qwen2.5-3B-Instruct"
        config.gad.generator_learning_rate = 3e-6
        return config

Any field can also be set on the command line: --config.gad.generator_learning_rate=3e-6 --config.stages=warmup,gad. A
run needs at least `student` and `data.train`.
"""

from ml_collections import ConfigDict

from gadjax.config import default_config


def get_config() -> ConfigDict:
    """The defaults: warmup, then GAD, at the paper's shapes."""
    return default_config()
