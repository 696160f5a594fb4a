"""Plugins: packages and files of others, whose classes a configuration may name.

An installed distribution declares its package in the entry-point group `attnseg.plugins`. Whoever
types a command may add a file by `plugins=[my_idea.py]`. Nothing of a plugin is imported here.
"""

import functools
import hashlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

from attnseg.errors import ConfigError

GROUP = "attnseg.plugins"
CODE = (".py", ".so", ".pyd")  # endings of the files that a plugin's digest is made of
PARTS = ("_target_", "mixing", "gather")  # options that may name code of a plugin
_files: dict[str, "Plugin"] = {}  # added on the command line


@dataclass(frozen=True)
class Plugin:
    """A package or file whose classes a configuration may name.

    Attributes:
        name: of the package or module, with which every `_target_` begins.
        version: of the distribution; empty for a file.
        path: the package's folder, or the file.
        configs: the folder of its choices; it need not exist.
    """

    name: str
    version: str
    path: Path
    configs: Path

    def __str__(self) -> str:
        return f"{self.name} {self.version}".strip()

    @functools.cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits of the names and contents of all code files."""
        paths = [self.path]
        if self.path.is_dir():
            paths = sorted(p for p in self.path.rglob("*") if p.suffix in CODE)
        digest = hashlib.sha256()
        for path in paths:
            name = path.relative_to(self.path.parent).as_posix()
            digest.update(f"{name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
        return digest.hexdigest()[:16]

    def describe(self) -> dict[str, str]:
        """Return what a run folder keeps of the plugin."""
        source = {"version": self.version} if self.version else {"file": str(self.path)}
        return {**source, "digest": self.digest}

    def lists(self, target: str) -> bool:
        """Return whether one of the plugin's own choices has this `_target_`."""
        named = re.compile(rf"(?m)^\s*_target_: *['\"]?{re.escape(target)}['\"]?\s*(#|$)")
        return any(
            named.search(p.read_text(encoding="utf-8")) for p in self.configs.glob("*/*.yaml")
        )


@functools.cache
def list_installed() -> Mapping[str, Plugin]:
    """Return the plugins that installed distributions declare, by name."""
    plugins = {}
    for entry in entry_points(group=GROUP):
        name = entry.module.partition(".")[0]
        spec = importlib.util.find_spec(name)
        if spec is None or name == "attnseg" or name in sys.stdlib_module_names:
            continue
        folders = spec.submodule_search_locations
        path = Path(next(iter(folders)) if folders else spec.origin or name).resolve()
        version = entry.dist.version if entry.dist else ""
        plugins[name] = Plugin(name, version, path, path / "configs")
    return plugins


def list_plugins() -> dict[str, Plugin]:
    """Return all plugins by name: the installed ones, and the files added to this process."""
    return {**list_installed(), **_files}


def find_plugin(target: str) -> Plugin | None:
    """Return the plugin that a dotted name belongs to."""
    return list_plugins().get(target.partition(".")[0])


def find_used_plugins(node: object) -> dict[str, Plugin]:
    """Return the plugins whose code is named anywhere in plain containers, by name."""
    if isinstance(node, Mapping):
        named = (node[key] for key in PARTS if isinstance(node.get(key), str))
        used = {plugin.name: plugin for name in named if (plugin := find_plugin(name))}
        return used | find_used_plugins(list(node.values()))
    if isinstance(node, list | tuple):
        return {name: each for item in node for name, each in find_used_plugins(item).items()}
    return {}


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the files that `plugins=[FILE,...]` among some arguments names, and the others."""
    own = [argument for argument in arguments if argument.startswith("plugins=")]
    texts = [text.strip(" '\"") for each in own for text in each[8:].strip("[]").split(",")]
    return [text for text in texts if text], [each for each in arguments if each not in own]


def add_files(files: Iterable[str]) -> None:
    """Let configurations name the classes of some files, within this process.

    A folder `configs/` beside a file is searched for choices. As for a script that is run, other
    modules beside it can be imported, too.

    Raises:
        ConfigError: a file is missing, or no module of its name can be imported from it.
    """
    for file in files:
        path = Path(file).resolve()
        name = path.stem
        if path.suffix != ".py" or not name.isidentifier():
            raise ConfigError(
                f"plugins: {file!r} is not a Python file; give one such as my_idea.py"
            )
        if not path.is_file():
            raise ConfigError(f"plugins: {path} not found; correct the path")
        if str(path.parent) not in sys.path:
            sys.path.append(str(path.parent))
            importlib.invalidate_caches()
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None or Path(spec.origin).resolve() != path:
            raise ConfigError(f"plugins: another module is called {name}; rename {file}")
        _files[name] = Plugin(name, "", path, path.parent / "configs")


def list_added_files() -> list[str]:
    """Return the files that were added to this process, for other processes of the same run."""
    return [str(plugin.path) for plugin in _files.values()]


def explain_absence(name: str, recorded: Mapping[str, str]) -> str:
    """Return why a plugin that a run has recorded is not there, and the remedy."""
    if file := recorded.get("file"):
        title = Path(file).name
        return f"of plugin {title}, which is not on the command line; add plugins=[{file}]"
    title = f"{name} {recorded.get('version', '')}".strip()
    return f"of plugin {title}, which is not installed; install it"


def locate_failure(error: BaseException) -> tuple[Plugin, str] | None:
    """Return the plugin whose code an exception passed through, and the last place there.

    An exception of another process carries its traceback as text.
    """
    for plugin in list_plugins().values():
        for each in _chain(error):
            trace = traceback.extract_tb(each.__traceback__)
            places = [(frame.filename, str(frame.lineno)) for frame in trace]
            places += re.findall(r'File "([^"]+)", line (\d+)', str(each))
            if isinstance(each, SyntaxError):  # It is raised where the file is imported.
                places.append((each.filename or "", str(each.lineno)))
            for file, line in reversed(places):
                if Path(file).resolve().is_relative_to(plugin.path):
                    return plugin, f"{Path(file).name}, line {line}"
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
