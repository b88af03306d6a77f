"""Read YAML strictly: no duplicate keys, and no anchors that expand to huge documents."""

from typing import Any

import yaml

# All shipped recipes together, with expanded anchors, have a tenth of this.
_MOST_NODES = 100_000


def read_yaml(text: str) -> Any:
    """Read the content of a document, as plain Python types.

    PyYAML silently takes the last of duplicate keys. It also expands a few lines of nested anchors
    ("billion laughs") to a document that does not fit into memory. Both are errors here.

    Raises:
        ValueError: the text is not YAML, has a duplicate key, or expands to a document that is too
            large or contains itself. The message names the line.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, {})
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {error}") from error
    except RecursionError as error:
        raise ValueError("the YAML is nested too deeply") from error


def _check(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Check a tree and return its number of nodes with expanded anchors.

    ``sizes`` maps the id of a root to the size of its tree; 0 while the tree is being counted.
    """
    known = sizes.get(id(node))
    if known == 0:
        raise ValueError(f"{_line(node)}: the anchor contains itself")
    if known is not None:
        return known
    sizes[id(node)] = 0
    parts: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        keys: set[tuple[str, str]] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in keys:
                    raise ValueError(f"{_line(key)}: duplicate key {key.value!r:.80}; keep one")
                keys.add((key.tag, key.value))
            parts += [key, value]
    elif isinstance(node, yaml.SequenceNode):
        parts = node.value
    size = 1 + sum(_check(part, sizes) for part in parts)
    if size > _MOST_NODES:
        raise ValueError(
            f"{_line(node)}: with expanded anchors the document is too large; use fewer anchors"
        )
    sizes[id(node)] = size
    return size


def _line(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}"
