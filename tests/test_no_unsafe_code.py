"""What no module of gadjax does: unpickle, run a shell, evaluate text, or run a checkpoint's code."""

from __future__ import annotations

import ast
import pathlib

import pytest

pytestmark = pytest.mark.quick

_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
_BUILTINS = {"eval", "exec", "compile", "__import__"}
_CALLS = {"yaml.load", "yaml.unsafe_load", "torch.load", "os.system", "os.popen", "jax.numpy.load", "jnp.load"}
_ARGUMENTS = {"shell", "allow_pickle", "trust_remote_code"}  # never anything but False


def unsafe(source: str) -> list[str]:
    """What of the above Python text does, by line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node, name.name) for name in node.names if name.name.partition(".")[0] in _MODULES]
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{name.name}" for name in node.names}
            found += [(node, name) for name in names if name in _CALLS or name.partition(".")[0] in _MODULES]
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            found += [(node, name)] if name in _BUILTINS | _CALLS else []
            found += [
                (node, f"{keyword.arg}={ast.unparse(keyword.value)}")
                for keyword in node.keywords
                if keyword.arg in _ARGUMENTS
                and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
            ]
    return [f"{node.lineno}: {what}" for node, what in found]


def test_no_module_does(repo: pathlib.Path):
    files = sorted((repo / "gadjax").rglob("*.py"))
    assert len(files) > 50
    assert {str(file): lines for file in files if (lines := unsafe(file.read_text(encoding="utf-8")))} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import a, marshal as m",
        "from shelve import open",
        "import pickle.whatever",
        "eval('1')",
        "exec(text)",
        "subprocess.run(command, shell=True)",
        "subprocess.run(command, shell=flag)",
        "yaml.load(text)",
        "from yaml import load",
        "torch.load(path)",
        "os.system('ls')",
        "np.load(path, allow_pickle=True)",
        "AutoTokenizer.from_pretrained(path, trust_remote_code=True)",
    ],
)
def test_it_would_be_seen(source):
    assert unsafe(source)
    assert not unsafe("import json\nre.compile('a')\nnp.load(p, allow_pickle=False)\nsubprocess.run(['ls'])")
