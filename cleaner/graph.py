"""The order in which tables can be emptied, by the foreign keys between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

Node = TypeVar("Node", bound=int)


def deletion_order(
    nodes: Sequence[Node], references: Iterable[tuple[Node, Node]]
) -> list[tuple[Node, ...]]:
    """Group ``nodes`` so that whoever refers comes before what it refers to.

    ``references`` are (child, parent) pairs; pairs with a stranger and references to oneself
    don't matter. A group of several nodes is a cycle: no order would do. The result depends on
    the order of ``nodes`` alone. Tarjan's algorithm, without recursion, since a chain of foreign
    keys may be longer than the interpreter's stack.
    """
    rank = {node: position for position, node in enumerate(nodes)}
    children: dict[Node, list[Node]] = {node: [] for node in nodes}
    for child, parent in references:
        if child in rank and parent in rank and child != parent:
            children[parent].append(child)
    for referring in children.values():
        referring.sort(key=rank.__getitem__)

    groups: list[tuple[Node, ...]] = []
    index: dict[Node, int] = {}
    low: dict[Node, int] = {}
    stack: list[Node] = []
    on_stack: set[Node] = set()
    for root in nodes:
        if root in index:
            continue
        work = [(root, iter(children[root]))]
        index[root] = low[root] = len(index)
        stack.append(root)
        on_stack.add(root)
        while work:
            node, remaining = work[-1]
            for child in remaining:
                if child not in index:
                    index[child] = low[child] = len(index)
                    stack.append(child)
                    on_stack.add(child)
                    work.append((child, iter(children[child])))
                    break
                if child in on_stack:
                    low[node] = min(low[node], index[child])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    cut = stack.index(node)
                    group = stack[cut:]
                    del stack[cut:]
                    on_stack.difference_update(group)
                    groups.append(tuple(sorted(group, key=rank.__getitem__)))
    return groups


def reachable(start: Iterable[Node], edges: Mapping[Node, Iterable[Node]]) -> set[Node]:
    """All that can be reached from ``start`` along ``edges``, ``start`` included."""
    seen = set(start)
    work = list(seen)
    while work:
        for following in edges.get(work.pop(), ()):
            if following not in seen:
                seen.add(following)
                work.append(following)
    return seen
