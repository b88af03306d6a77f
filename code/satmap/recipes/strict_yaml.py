"""YAML as recipes are written: no key twice, and no anchors that multiply beyond measure."""

from typing import Any

import yaml

# All shipped recipes together have a tenth of that, with every anchor written out.
_MOST_NODES = 100_000


def read_yaml(text: str) -> Any:
    """The content of a document, of plain types only.

    PyYAML takes the last of two equal keys without a word, and a few lines of anchors that refer to
    each other ("billion laughs") for a tree that no memory holds. Both are errors here.

    Raises:
        ValueError: not YAML, a key that stands twice in one mapping, or a tree that is too large
            or holds itself; says on which line.
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
        raise ValueError("not YAML that anybody needs: lists within lists too deep") from error


def _check(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Count the nodes of a tree with its anchors written out.

    Args:
        node: its root.
        sizes: of the trees that were counted, by the identities of their roots; 0 while at work.
    """
    known = sizes.get(id(node))
    if known == 0:
        raise ValueError(f"{_line(node)}: the anchor holds itself")
    if known is not None:
        return known
    sizes[id(node)] = 0
    parts: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        keys: set[tuple[str, str]] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in keys:
                    raise ValueError(
                        f"{_line(key)}: the key {key.value!r:.80} stands here twice; keep one"
                    )
                keys.add((key.tag, key.value))
            parts += [key, value]
    elif isinstance(node, yaml.SequenceNode):
        parts = node.value
    size = 1 + sum(_check(part, sizes) for part in parts)
    if size > _MOST_NODES:
        raise ValueError(
            f"{_line(node)}: with its anchors written out it is far too large; write less"
        )
    sizes[id(node)] = size
    return size


def _line(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}"
