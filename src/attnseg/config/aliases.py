"""Refuses YAML files whose aliases expand to more values than fit into memory."""

import yaml

MOST_VALUES = 100_000  # that a file may stand for; the largest configuration has a few hundred


def check_aliases(text: str) -> None:
    """Refuse a YAML text that stands for too many values once its aliases are written out.

    Raises:
        ValueError: it does, or an alias stands for something within itself.
        yaml.YAMLError: it is no YAML.
    """
    if "*" in text and (root := yaml.compose(text, Loader=yaml.SafeLoader)) is not None:
        if _count_values(root, {}) > MOST_VALUES:
            raise ValueError(f"aliases that stand for over {MOST_VALUES:,} values; write them out")


def _count_values(node: yaml.Node, counts: dict[int, int | None]) -> int:
    """Return how many values a node stands for; `counts` keeps those of nodes by their id."""
    if id(node) not in counts:
        counts[id(node)] = None  # not counted yet
        children = node.value if isinstance(node, yaml.CollectionNode) else ()
        pairs = isinstance(node, yaml.MappingNode)
        below = [child for pair in children for child in pair] if pairs else children
        counts[id(node)] = 1 + sum(_count_values(child, counts) for child in below)
    if (count := counts[id(node)]) is None:
        raise ValueError("values nested too deeply, or within itself; write them out")
    return count
