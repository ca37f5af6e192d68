"""Pages of evaluations and runs, each as one self-contained file.

A page requests nothing: style sheet, script and data are in the file. Its Content-Security-Policy allows only that
style sheet and that script, by their hashes. What a model wrote is shown as text and never read as HTML.
"""

from __future__ import annotations

import base64
import hashlib
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from gadjax.files import whole_output, writing

TEXT_LIMIT = 20_000  # characters: a page holds no more of a text
_UNSAFE = re.compile("[<>&\u2028\u2029]")


def write_page(
    out: pathlib.Path, template: str, context: Mapping[str, Any], *, styles: Sequence[str], scripts: Sequence[str]
) -> pathlib.Path:
    """Writes a page, whole or not at all, and returns its path.

    Args:
      out: the page's file.
      template: name of a Jinja template in `gadjax/evaluation/page`. It gets `policy`, `style` and `script` besides
        the context.
      context: what else the template reads.
      styles, scripts: names of files in that folder, which are joined in this order.

    Raises:
      UserError: the file cannot be written.
    """
    import jinja2

    folder = resources.files("gadjax.evaluation") / "page"
    style, script = ("\n".join((folder / name).read_text("utf-8") for name in names) for names in (styles, scripts))
    policy = f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; "
    policy += "base-uri 'none'; form-action 'none'"
    options: Any = {"autoescape": True, "undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    loader = jinja2.FunctionLoader(lambda name: (folder / name).read_text("utf-8"))
    page = jinja2.Environment(loader=loader, **options).get_template(template)
    text = page.render(context, policy=policy, style=style, script=script)
    with whole_output(out) as partial, writing(out):
        # UTF-8 cannot hold a lone surrogate; its escape is also JSON's.
        partial.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
    return out


def as_script(value: Any) -> str:
    """JSON in which "<", ">" and "&" are escapes, so that no text can end the element that holds it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def text_in_part(text: str) -> str | tuple[str, int]:
    """A text as a page's data hold it: the text, or its first part and its length if it is longer than a page holds."""
    return text if len(text) <= TEXT_LIMIT else (text[:TEXT_LIMIT], len(text))


def _hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"
