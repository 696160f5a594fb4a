"""The shape of the source: rooms and their sizes, arrows between them, lengths, names, headers.

`python tests/contracts/test_house.py` prints the table.
"""

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Set
from functools import cache
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.contracts.test_architecture import ALLOWED

ROOT = Path(__file__).parents[2] / "src" / "attnseg"
LARGEST_ROOM = 0.17  # of all lines
LONGEST_FILE = 450  # lines
LONGEST_FUNCTION = 60  # lines
SHARED_NAMES = 15  # top-level names that may stand in several files
QUESTION = re.compile(r"(what|whether|which|how|where|when|who|why)\b", re.IGNORECASE)

Graph = Mapping[str, Set[str]]


@cache
def modules() -> dict[str, tuple[str, ast.Module]]:
    """Source and tree of every module, by its dotted name below the package."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found[name] = (text := path.read_text(), ast.parse(text))
    return found


def room(module: str) -> str:
    return module.partition(".")[0]


@cache
def module_graph() -> dict[str, set[str]]:
    """Which modules each module imports, those named in strings such as "training.fit:fit" too.

    Imports for type checkers alone are no arrows.
    """
    known = modules()
    graph: dict[str, set[str]] = {}
    for name, (_, tree) in known.items():
        wanted: set[str] = set()
        for node in _executed(tree):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                wanted |= {f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                if match := re.fullmatch(r"(?:attnseg\.)?(\w+\.[\w.]+):\w+", node.value):
                    wanted.add(f"attnseg.{match[1]}")
        below = {full.removeprefix("attnseg.") for full in wanted if full.startswith("attnseg.")}
        graph[name] = {
            target
            for full in below
            for target in (full, full.rpartition(".")[0])
            if target in known and (target == full or full not in known)
        } - {name}
    graph.pop("__init__")  # the public names, taken from everywhere
    return graph


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from _executed(child)


def room_graph() -> dict[str, set[str]]:
    graph: dict[str, set[str]] = defaultdict(set)
    for module, targets in module_graph().items():
        graph[room(module)] |= {room(target) for target in targets} - {room(module)}
    return graph


def circles(graph: Graph) -> list[list[str]]:
    """Groups of nodes that reach one another."""
    reach = {node: _reachable(graph, node) for node in graph}
    groups = {
        tuple(sorted(other for other in reach[node] if node in reach.get(other, ())))
        for node in graph
        if node in reach[node]
    }
    return [list(group) for group in sorted(groups)]


def _reachable(graph: Graph, start: str) -> set[str]:
    seen: set[str] = set()
    todo = list(graph.get(start, ()))
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            todo += graph.get(node, ())
    return seen


def arrows_up() -> list[str]:
    """Imports of a room that stands at or above the importer in the order of `ALLOWED`."""
    order = {name: floor for floor, name in enumerate(ALLOWED)}
    return [
        f"{source} -> {target}"
        for source, targets in sorted(room_graph().items())
        for target in sorted(targets)
        if order[target] >= order[source]
    ]


def room_lines() -> dict[str, int]:
    lines: dict[str, int] = defaultdict(int)
    for module, (text, _) in modules().items():
        lines[room(module)] += text.count("\n")
    return dict(sorted(lines.items(), key=lambda item: -item[1]))


def long_files() -> dict[str, int]:
    lines = {module: text.count("\n") for module, (text, _) in modules().items()}
    return {module: count for module, count in lines.items() if count > LONGEST_FILE}


def functions() -> Iterator[tuple[str, int]]:
    for module, (_, tree) in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{module}:{node.name}", (node.end_lineno or 0) - node.lineno + 1


def long_functions() -> dict[str, int]:
    return {name: count for name, count in functions() if count > LONGEST_FUNCTION}


def shared_names() -> dict[str, list[str]]:
    """Top-level functions and classes that are defined in more than one module."""
    places: dict[str, list[str]] = defaultdict(list)
    for module, (_, tree) in modules().items():
        kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        for name in {node.name for node in tree.body if isinstance(node, kinds)}:
            if not name.startswith("__"):
                places[name].append(module)
    return {name: found for name, found in sorted(places.items()) if len(found) > 1}


def questions() -> list[str]:
    """Modules whose header begins with a question word, or that have none."""
    headers = {module: ast.get_docstring(tree) for module, (_, tree) in modules().items()}
    return [module for module, header in headers.items() if not header or QUESTION.match(header)]


def table() -> str:
    """The whole shape, as Markdown."""
    lines = room_lines()
    total = sum(lines.values())
    graph = module_graph()
    rows = [f"| {name} | {count:,} | {count / total:.1%} |" for name, count in lines.items()]
    inside = circles(graph)
    shared = shared_names()
    public = len([name for name in shared if not name.startswith("_")])
    median = sorted(count for _, count in functions())
    lists = {
        f"arrows between rooms {sum(map(len, room_graph().values()))}, up": arrows_up(),
        "circles between rooms": circles(room_graph()),
        "circles between modules": inside,
        f"files over {LONGEST_FILE} lines": long_files(),
        f"functions over {LONGEST_FUNCTION} lines (median {median[len(median) // 2]})":
            long_functions(),
        f"top-level names in several files ({public} of them public)": shared,
        "headers that begin with a question word": questions(),
    }  # fmt: skip
    return "\n".join(
        [
            f"| room ({len(modules())} files) | {total:,} lines | share |", "|---|---|---|", *rows,
            *(f"\n{name}: {len(found)}\n  {_listed(found)}" for name, found in lists.items()),
        ]
    )  # fmt: skip


def _listed(found: object) -> str:
    items = [f"{k}: {v}" for k, v in found.items()] if isinstance(found, dict) else found
    return "\n  ".join(map(str, items)) or "-"


def test_arrows_only_go_down():
    print(table())
    order = list(ALLOWED)
    for name, allowed in ALLOWED.items():
        assert allowed - {name} <= set(order[: order.index(name)]), f"{name}: out of order"
    assert arrows_up() == []
    assert circles(room_graph()) == []


def test_no_circle_between_modules():
    assert circles(module_graph()) == []


def test_no_file_and_no_function_is_too_long():
    assert long_files() == {}
    assert long_functions() == {}


def test_a_name_says_what_it_is_without_its_module():
    assert len(shared_names()) <= SHARED_NAMES, shared_names()


def test_no_header_begins_with_a_question_word():
    assert questions() == []
    asked = "What it is. Whether so. Which one. How so. Where. When. Who. Why.".split(". ")
    assert all(map(QUESTION.match, asked))
    assert not QUESTION.match("Whole volumes.")


def test_largest_room():
    lines = room_lines()
    assert max(lines.values()) <= LARGEST_ROOM * sum(lines.values()), lines


if __name__ == "__main__":
    print(table())
