"""Who may import whom."""

import ast
from pathlib import Path

import pytest

import attnseg
from attnseg.config.folder import configs_folder
from attnseg.config.training import Dataset

ROOT = Path(attnseg.__file__).parent
BASE = {"energy", "errors", "files", "memory", "nvml", "progress", "system"}
LEARNING = {"models", "losses", "metrics", "layers", "schedules"}
SLICES = {"data", "drawing", "prediction"} | BASE
RUNS = {"runs", "processes", "config", "plugins"} | LEARNING | SLICES
# Bottom to top: a room may only be allowed what stands above it here, so no circle can arise.
ALLOWED = {  # and itself
    "errors": set(),
    "memory": set(),
    "system": set(),
    "nvml": set(),
    "energy": {"nvml"},
    "progress": set(),
    "files": {"errors"},
    "plugins": {"errors"},
    "layers": set(),
    "attention": {"layers", "plugins"},
    "models": {"layers", "errors"},
    "losses": set(),
    "metrics": set(),
    "schedules": set(),
    "data": BASE,
    "probes": set(),
    "phantoms": {"data", "probes"} | BASE,
    "prediction": {"data"} | BASE,
    "drawing": {"data", "prediction"},
    "config": {"data", "plugins"} | LEARNING | BASE,
    "processes": {"config"} | BASE,
    "runs": RUNS,
    "preparation": RUNS,
    "evaluation": {"preparation"} | RUNS,
    "conversion": {"preparation", "attention"} | RUNS,
    "training": {"conversion", "evaluation", "preparation", "attention"} | RUNS,
    "explain": {"evaluation", "preparation", "attention"} | RUNS,
    "search": {"training", "evaluation", "preparation"} | RUNS,
    "study": {"runs", "errors", "files", "config", "progress", "data", "metrics"},
    "benchmark": {"training", "evaluation", "preparation"} | RUNS,
    "export": {"evaluation", "preparation"} | RUNS,
    "contracts": {"export", "explain", "attention"} | RUNS,
    "doctor": {"training", "config", "memory", "system", "errors"},
    "gpu": {"benchmark", "training", "attention"} | RUNS,
    "probing": {"explain", "study", "probes"} | RUNS,
    "viewer": {"runs", "config"} | SLICES,
    "commands": {
        "viewer",
        "probing",
        "doctor",
        "benchmark",
        "gpu",
        "contracts",
        "explain",
        "export",
        "search",
        "study",
    }
    | {"training", "conversion", "evaluation", "preparation"}
    | RUNS,
    "cli": {"commands", "doctor", "training", "study"} | RUNS,
    "__main__": {"cli"},
    "api": {"cli", "commands", "training", "evaluation"} | RUNS,
}
FILES = sorted(ROOT.rglob("*.py"))
OUTSIDE = {
    "hydra": {"composition.py", "cli"},
    "omegaconf": {"composition.py", "cli", "rank_main.py"},
    "pytorch_lightning": {
        "training",
        "runs",
        "processes",
        "evaluation",
        "explain",
        "benchmark",
        "datamodule.py",
    },
    "pydantic": {"config", "commands", "options.py", "spec.py", "facts.py"},
    "huggingface_hub": {"hub.py"},
    "onnxruntime": {"onnx.py", "export.py"},
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by full name"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_enough_files_were_found():
    assert len(FILES) > 40


def test_imports_follow_the_layers():
    violations = []
    for path in FILES:
        package = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if package == "__init__":
            continue
        for name in imports(path):
            top, *rest = name.split(".")
            if top == "attnseg" and rest and rest[0] not in {package, *ALLOWED[package]}:
                violations.append(f"{path.relative_to(ROOT)}: {package} must not import {name}")
            if top in OUTSIDE and not {path.name, package} & OUTSIDE[top]:
                violations.append(f"{path.relative_to(ROOT)} must not import {top}")
    assert violations == []


@pytest.mark.parametrize("package", ["attention", "layers"])
def test_the_bottom_needs_torch_only(package):
    standard = {
        "collections",
        "contextlib",
        "copy",
        "functools",
        "importlib",
        "inspect",
        "math",
        "pkgutil",
        "types",
        "typing",
    }
    for path in (ROOT / package).glob("*.py"):
        tops = {name.split(".")[0] for name in imports(path)}
        assert tops <= standard | {"attnseg", "torch", "numpy"}, path


def test_prediction_needs_nothing_of_training():
    barred = {"torch", "pytorch_lightning", "hydra", "omegaconf", "albumentations", "monai"}
    for path in (ROOT / "prediction").glob("*.py"):
        assert not {name.split(".")[0] for name in imports(path)} & barred, path


def test_models_name_no_attention_and_the_rest_no_model():
    for path in (ROOT / "models").glob("*.py"):
        assert "attnseg.attention" not in path.read_text(), path
    choices = [
        p.stem for g in ("attn", "dataset", "model") for p in (configs_folder() / g).glob("*")
    ]
    keys = set(Dataset.model_fields)  # one of them is called as a dataset is
    rooms = "config runs preparation evaluation conversion training explain export search".split()
    names = set(choices) - keys
    for path in (p for room in rooms for p in (ROOT / room).glob("*.py")):
        # Many names are ordinary words; what matters is that no choice is compared with one.
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare) and "choice" in ast.unparse(node):
                words = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
                assert not words & names, (path, words & names)
