"""The order of deletes, for any graph of foreign keys."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cleaner.graph import deletion_order, reachable

graphs = st.integers(1, 12).flatmap(
    lambda n: st.tuples(
        st.just(list(range(n))),
        st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=40),
    )
)


@given(graphs)
def test_every_table_comes_once_and_before_what_it_refers_to(
    graph: tuple[list[int], list[tuple[int, int]]],
) -> None:
    nodes, references = graph
    groups = deletion_order(nodes, references)
    assert sorted(node for group in groups for node in group) == nodes
    place = {node: position for position, group in enumerate(groups) for node in group}
    assert all(place[child] <= place[parent] for child, parent in references)


@given(graphs)
def test_a_group_is_a_cycle_and_nothing_but_a_cycle(
    graph: tuple[list[int], list[tuple[int, int]]],
) -> None:
    nodes, references = graph
    edges: dict[int, list[int]] = {node: [] for node in nodes}
    for child, parent in references:
        edges[child].append(parent)
    for group in deletion_order(nodes, references):
        for node in group:
            mutual = {
                other for other in reachable([node], edges) if node in reachable([other], edges)
            }
            assert set(group) == mutual


def test_a_chain_longer_than_the_stack_is_no_trouble() -> None:
    nodes = list(range(20_000))
    order = deletion_order(nodes, [(n + 1, n) for n in nodes[:-1]])
    assert order == [(n,) for n in reversed(nodes)]


def test_strangers_do_not_matter() -> None:
    assert deletion_order([1, 2], [(9, 1), (1, 9), (2, 1)]) == [(2,), (1,)]
