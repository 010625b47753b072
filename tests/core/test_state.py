"""What can be done with any state: by row, without knowing what it means."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from titans_ts.core.state import join_rows, leaves, map_state, put_rows, select_rows, where_rows


class Inner(NamedTuple):
    first: Tensor
    others: tuple[Tensor, ...]


class Outer(NamedTuple):
    inner: Inner
    clock: Tensor
    nothing: tuple[Tensor, ...]


def state(rows: int, base: float = 0.0) -> Outer:
    row = torch.arange(rows) + base
    return Outer(Inner(row[:, None].expand(-1, 3).clone(), (row.clone(), row + 100)), row.long(), ())


def test_the_structure_stays_and_every_tensor_is_mapped():
    got = map_state(lambda a, b: a + b, state(3), state(3, 10.0))
    assert type(got) is Outer
    assert type(got.inner) is Inner
    assert got.inner.others[1].tolist() == [210.0, 212.0, 214.0]
    assert got.nothing == ()
    assert [leaf.shape[0] for leaf in leaves(got)] == [3, 3, 3, 3]


def test_states_of_different_structure_are_refused():
    with pytest.raises(ValueError, match="zip"):
        map_state(torch.add, (torch.ones(1),), (torch.ones(1), torch.ones(1)))


def test_rows_are_selected_in_the_given_order_and_may_repeat():
    got = select_rows(state(4), torch.tensor([3, 0, 3]))
    assert got.clock.tolist() == [3, 0, 3]
    assert got.inner.first[:, 1].tolist() == [3.0, 0.0, 3.0]


def test_rows_are_put_into_a_copy():
    old = state(4)
    got = put_rows(old, torch.tensor([2, 0]), state(2, 50.0))
    assert got.clock.tolist() == [51, 1, 50, 3]
    assert old.clock.tolist() == [0, 1, 2, 3]
    assert all(torch.equal(a, b) for a, b in zip(leaves(old), leaves(state(4)), strict=True))


def test_rows_of_several_states_are_joined():
    assert join_rows([state(2), state(1, 7.0)]).clock.tolist() == [0, 1, 7]


def test_selecting_and_joining_are_inverse():
    whole = state(5)
    parts = [select_rows(whole, torch.tensor(rows)) for rows in ([0, 1], [2], [3, 4])]
    assert all(torch.equal(a, b) for a, b in zip(leaves(join_rows(parts)), leaves(whole), strict=True))


def test_rows_are_chosen_by_condition():
    (got,) = where_rows(torch.tensor([True, False]), (torch.ones(2, 2, 1),), (torch.full((2, 2, 1), torch.nan),))
    assert got[0].tolist() == [[1.0], [1.0]]
    assert got[1].isnan().all()
