"""Names of datasets: `hf:OWNER/NAME/SPLIT:FIELD` of the Hugging Face hub, `tfds:NAME/SPLIT:FIELD` of TFDS."""

from __future__ import annotations

import re
from typing import NamedTuple

from gadjax.errors import UserError

HUB, TFDS = "hf:", "tfds:"

_FORMS = {
    HUB: (
        re.compile(r"(?P<path>[^:]+)/(?P<split>[\w.-]+)(:(?P<field>[\w./-]+))?"),
        "hf:OWNER/NAME/SPLIT, with /CONFIG before the split and :FIELD behind it where needed, such as "
        "hf:tatsu-lab/alpaca/train:instruction",
    ),
    TFDS: (
        re.compile(r"(?P<path>.+)/(?P<split>[\w.-]+(\[[^\]]*\])?)(:(?P<field>[\w./]+))?"),
        "tfds:NAME/SPLIT or tfds:NAME/SPLIT:FIELD, such as tfds:my_set/train:prompt",
    ),
}


class DatasetName(NamedTuple):
    """The parts of a dataset's name."""

    path: str  # of the hub: OWNER/NAME, OWNER/NAME/CONFIG, or a folder; of TFDS: NAME, or a folder
    split: str  # of TFDS: may be a slice, such as train[:10%]
    field: str | None


def parse(text: str) -> DatasetName:
    """The parts of `hf:PATH/SPLIT[:FIELD]` or `tfds:PATH/SPLIT[:FIELD]`; raises a `UserError` for another form."""
    pattern, form = _FORMS[HUB if text.startswith(HUB) else TFDS]
    match = pattern.fullmatch(text.partition(":")[2])
    if match is None:
        raise UserError(f"{text}: expected {form}")
    return DatasetName(match["path"], match["split"], match["field"])
