"""Ragged: a row of a padded batch is the series alone, and rows know nothing of each other."""

from dataclasses import replace

import pytest
import torch
from laws.cases import BACKBONES, NETWORKS, assert_same, make_backbone, make_memory, name_of

from titans_ts.core.state import join_rows, leaves, map_state, select_rows

TIME, ROWS = 13, 4
LENGTHS = torch.tensor([13, 5, 0, 8])
MODULES = [*NETWORKS, *BACKBONES, *(replace(config, op="numba") for config in NETWORKS)]


def make(config):
    return make_backbone(config) if hasattr(config, "variant") else make_memory(config)


def batch(config):
    x = torch.randn(ROWS, TIME, config.dim, dtype=torch.float64)
    return x, torch.rand(ROWS, TIME) < 0.8


@pytest.mark.parametrize("config", MODULES, ids=name_of)
def test_a_row_of_a_padded_batch_is_the_row_alone(config):
    module, (x, observed) = make(config), batch(config)
    before = torch.tensor([3, 0, 6, 1])
    with torch.no_grad():
        _, begun = module(x[:, :6].flip(1), None, None, before)
        y, end = module(x, begun, observed, LENGTHS)
        for row, length in enumerate(LENGTHS.tolist()):
            one = slice(row, row + 1)
            _, alone = module(x[one, :6].flip(1)[:, : before[row]], None)
            assert_same(select_rows(begun, torch.tensor([row])), alone, 1e-10)
            alone_y, alone_end = module(x[one, :length], alone, observed[one, :length])
            assert_same(y[one, :length], alone_y)
            assert_same(select_rows(end, torch.tensor([row])), alone_end)


@pytest.mark.parametrize("config", MODULES, ids=name_of)
def test_permuting_the_rows_permutes_outputs_and_states(config):
    module, (x, observed), order = make(config), batch(config), torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        y, end = module(x, None, observed, LENGTHS)
        shuffled, shuffled_end = module(x[order], None, observed[order], LENGTHS[order])
    for place, row in enumerate(order.tolist()):
        length = int(LENGTHS[row])
        assert_same(shuffled[place, :length], y[row, :length], 1e-12)
    assert_same(shuffled_end, select_rows(end, order), 1e-12)


@pytest.mark.parametrize("config", MODULES, ids=name_of)
def test_what_another_row_holds_never_matters_to_the_last_bit(config):
    module, (x, observed) = make(config), batch(config)
    other = x.clone()
    other[1:] = 1e6 * torch.randn_like(other[1:])
    with torch.no_grad():
        y, end = module(x, None, observed, LENGTHS)
        other_y, other_end = module(other, None, observed.logical_xor(torch.arange(ROWS)[:, None] > 0), LENGTHS)
    assert torch.equal(other_y[0], y[0])
    assert all(torch.equal(a[0], b[0]) for a, b in zip(leaves(other_end), leaves(end), strict=True))


@pytest.mark.parametrize("config", MODULES, ids=name_of)
def test_states_of_several_batches_may_be_joined_and_go_on_together(config):
    module, (x, observed) = make(config), batch(config)
    with torch.no_grad():
        _, long = module(x[:2, :7], None, observed[:2, :7])
        _, short = module(x[2:, :3], None, observed[2:, :3])
        joined = join_rows([long, short])
        y, end = module(x[:, 7:], joined, observed[:, 7:])
        for part, rows in ((long, slice(0, 2)), (short, slice(2, 4))):
            alone, alone_end = module(x[rows, 7:], part, observed[rows, 7:])
            assert_same(y[rows], alone)
            assert_same(map_state(lambda leaf, rows=rows: leaf[rows], end), alone_end)
