"""No call in our own code can be talked into running what a file, a name or a URL says."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted([ROOT / "train.py", *ROOT.glob("scripts/**/*.py"), *ROOT.glob("src/**/*.py")])

HUB = (
    ROOT / "src/attnseg/prediction/hub.py"
)  # the one file that may ask the network, if it is told to
EXCEPTIONS = {
    HUB: "huggingface_hub",
    # It edits the SVG that matplotlib has just drawn, in which names of files are escaped.
    ROOT / "src/attnseg/study/canvas.py": "xml.etree",
}
BUILTINS = {"eval", "exec", "compile", "__import__"}
# What runs code, opens a shell or a connection, or trusts an archive or XML.
FORBIDDEN = (
    "os.system", "os.popen", "os.exec*", "os.spawn*",
    "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads",
    "cloudpickle.load", "cloudpickle.loads", "dill", "shelve", "joblib.load", "pandas.read_pickle",
    "pandas.eval", "torch.hub", "torch.jit.load", "torch.package",
    "yaml.unsafe_load", "yaml.full_load", "yaml.unsafe_load_all", "yaml.full_load_all",
    "hydra.utils", "hydra._internal.instantiate",
    "requests", "httpx", "aiohttp", "urllib3", "urllib.request", "http.client", "ftplib", "fsspec",
    "huggingface_hub", "socket.socket", "socket.create_connection",
    "tempfile.mktemp", "shutil.unpack_archive",
    "xml.etree", "xml.sax", "xml.dom", "lxml",
)  # fmt: skip
METHODS = {"load_from_checkpoint", "extractall", "extract", "_load_pickle"}
SAFE_LOADERS = {"yaml.SafeLoader", "yaml.CSafeLoader"}
# Calls that are safe with one keyword, which must be there, spelled out.
NEEDED = {
    "torch.load": ("weights_only", True),
    "numpy.load": ("allow_pickle", False),
    "numpy.save": ("allow_pickle", False),
}


def findings(source: str) -> list[str]:
    """Return line and reason of every forbidden thing in Python source."""
    tree = ast.parse(source)
    names: dict[str, str] = {}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                names[alias.asname or top] = alias.name if alias.asname else top
                found += hits(alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                names[alias.asname or alias.name] = full
                found += hits(full, node.lineno)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found += hits(dotted(node, names), node.lineno)
        elif isinstance(node, ast.Call):
            found += [f"{node.lineno}: {reason}" for reason in faults(node, names)]
    return sorted(set(found))


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    """Return the full name of `np.load`, say; empty if it has none."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute) and (parent := dotted(node.value, names)):
        return f"{parent}.{node.attr}"
    return ""


def hits(name: str, line: int) -> list[str]:
    """Return what is forbidden of a dotted name, mentioned or called."""
    found = []
    for entry in FORBIDDEN:
        family = entry.removesuffix("*") if entry.endswith("*") else f"{entry}."
        if f"{name}.".startswith(family):
            found.append(f"{line}: {entry}")
    return found


def faults(call: ast.Call, names: dict[str, str]) -> Iterator[str]:
    """Yield what is wrong with a call beyond its name being forbidden."""
    name = dotted(call.func, names)
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    if name in BUILTINS or name.removeprefix("builtins.") in BUILTINS:
        yield name
    if isinstance(call.func, ast.Attribute) and call.func.attr in METHODS:
        yield call.func.attr
    if not is_constant(keywords.get("shell"), False, absent=True):
        yield "shell"
    if not is_constant(keywords.get("allow_pickle"), False, absent=True):
        yield "allow_pickle"
    if name in NEEDED:
        keyword, value = NEEDED[name]
        if not is_constant(keywords.get(keyword), value, absent=False):
            yield f"{name} without {keyword}={value}"
    if name in ("yaml.load", "yaml.load_all"):
        loader = keywords.get("Loader") or (call.args[1] if len(call.args) > 1 else None)
        if loader is None or dotted(loader, names) not in SAFE_LOADERS:
            yield f"{name} without SafeLoader"
    if name.startswith("jinja2.") and name.endswith("Environment"):
        if not is_constant(keywords.get("autoescape"), True, absent=False):
            yield f"{name} without autoescape"


def is_constant(node: ast.expr | None, value: object, absent: bool) -> bool:
    if node is None:
        return absent
    return isinstance(node, ast.Constant) and node.value is value


PLANTED = {
    "pickle.load": "import pickle\npickle.load(file)",
    "pickle.loads under another name": "from pickle import loads as read\nread(data)",
    "pickle.Unpickler": "import pickle as p\nclass Mine(p.Unpickler): ...",
    "eval": "eval(text)",
    "exec": "def f():\n    exec(text)",
    "builtins.eval": "import builtins\nbuiltins.eval(text)",
    "compile": "compile(text, '', 'exec')",
    "__import__": "__import__(name)",
    "shell=True": "import subprocess\nsubprocess.run(line, shell=True)",
    "shell=variable": "import subprocess\nsubprocess.Popen(line, shell=wanted)",
    "os.system": "import os\nos.system(line)",
    "os.system taken along": "import os\nrun = os.system",
    "os.popen": "from os import popen\npopen(line)",
    "os.execv": "import os\nos.execv(path, words)",
    "yaml.load": "import yaml\nyaml.load(file)",
    "yaml.load with Loader": "import yaml\nyaml.load(file, Loader=yaml.Loader)",
    "yaml.load with FullLoader": "import yaml\nyaml.load(file, yaml.FullLoader)",
    "yaml.unsafe_load": "import yaml\nyaml.unsafe_load(file)",
    "np.load": "import numpy as np\nnp.load(path)",
    "np.load with pickles": "import numpy as np\nnp.load(path, allow_pickle=True)",
    "allow_pickle anywhere": "anything(path, allow_pickle=maybe)",
    "torch.load": "import torch\ntorch.load(path)",
    "torch.load unsafe": "import torch\ntorch.load(path, weights_only=False)",
    "torch.load by choice": "from torch import load\nload(path, weights_only=safe)",
    "torch.hub": "import torch\ntorch.hub.load_state_dict_from_url(url)",
    "torch.jit.load": "import torch\ntorch.jit.load(path)",
    "marshal": "import marshal\nmarshal.loads(data)",
    "instantiate": "from hydra.utils import instantiate\ninstantiate(node)",
    "instantiate in full": "import hydra\nhydra.utils.instantiate(node)",
    "load_from_checkpoint": "Module.load_from_checkpoint(path)",
    "requests": "import requests",
    "urllib.request": "from urllib.request import urlopen",
    "urllib.request in full": "import urllib.request\nurllib.request.urlretrieve(url)",
    "socket": "import socket\nsocket.create_connection(place)",
    "read_pickle": "import pandas as pd\npd.read_pickle(path)",
    "joblib.load": "import joblib\njoblib.load(path)",
    "extractall": "import zipfile\nzipfile.ZipFile(path).extractall()",
    "mktemp": "import tempfile\ntempfile.mktemp()",
    "jinja2": "import jinja2\njinja2.Environment()",
    "xml": "import xml.etree.ElementTree as tree",
}
HARMLESS = {
    "torch": "import torch\ntorch.load(path, map_location='cpu', weights_only=True)",
    "numpy": "import numpy as np\nnp.load(path, mmap_mode='r', allow_pickle=False)",
    "yaml": "import yaml\nyaml.safe_load(file)\nyaml.load(file, Loader=yaml.SafeLoader)",
    "subprocess": "import subprocess\nsubprocess.run(['git', 'status'], shell=False)",
    "names": "import re, socket, pickle\nre.compile(text)\nsocket.gethostname()\nmodel.eval()\n"
    "try: pass\nexcept pickle.UnpicklingError: pass",
    "quoting": "from urllib.parse import quote\nquote(name)",
    "jinja2": "from jinja2 import Environment\nEnvironment(autoescape=True)",
}


@pytest.mark.parametrize("source", PLANTED.values(), ids=PLANTED)
def test_the_gate_finds_what_is_planted(source):
    assert findings(source)


@pytest.mark.parametrize("source", HARMLESS.values(), ids=HARMLESS)
def test_the_gate_lets_the_harmless_pass(source):
    assert findings(source) == []


def test_enough_files_are_looked_at():
    assert len(FILES) > 80


def test_our_code_passes():
    violations = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in FILES
        for line in findings(path.read_text())
        if line.partition(": ")[2] != EXCEPTIONS.get(path)
    ]
    assert violations == []


def test_the_hub_is_asked_within_functions_only():
    tree = ast.parse(HUB.read_text())
    tree.body = [n for n in tree.body if not isinstance(n, ast.FunctionDef)]
    assert findings(ast.unparse(tree)) == []
    assert any("huggingface_hub" in line for line in findings(HUB.read_text()))
