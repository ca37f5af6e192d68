"""The type of a section of the config."""

from __future__ import annotations

import pydantic


class Section(pydantic.BaseModel):
    """Fields of one section. Numbers are finite; values are of the type that is declared, without conversion."""

    model_config = pydantic.ConfigDict(strict=True, allow_inf_nan=False, use_attribute_docstrings=True)
