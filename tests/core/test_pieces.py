"""Cutting a ragged batch at the clocks of its rows, against a loop over single tokens."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from titans_ts.core.layers import last_rows
from titans_ts.core.pieces import begins, join, pieces, real, take

ROWS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 12)), min_size=1, max_size=5)


def by_hand(offsets: list[int], lengths: list[int], size: int) -> list[dict[int, list[int]]]:
    """For every chunk of the call, the tokens of each row in it."""
    chunks: list[dict[int, list[int]]] = []
    for row, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
        for t in range(length):
            index = (offset + t) // size
            while len(chunks) <= index:
                chunks.append({})
            chunks[index].setdefault(row, []).append(t)
    return chunks


@settings(deadline=None, derandomize=True, max_examples=150, database=None)
@given(ROWS, st.integers(1, 5), st.booleans(), st.booleans())
def test_the_steps_are_those_of_a_loop_over_tokens(rows, size, same_clock, whole):
    offsets = [rows[0][0] % size if same_clock else offset % size for offset, _ in rows]
    time = max(1, *(length for _, length in rows))
    lengths = [time if whole else length for _, length in rows]
    given_lengths = None if whole and same_clock else torch.tensor(lengths)
    steps = pieces(torch.tensor(offsets), given_lengths, time, size)
    chunks = [chunk for chunk in by_hand(offsets, lengths, size) if chunk]
    x = torch.arange(1, len(rows) * time + 1).view(len(rows), time)
    assert len(steps) == len(chunks)
    for step, chunk in zip(steps, chunks, strict=True):
        cut, exists, first = take(x, step, 1), real(step, x.device), begins(step, torch.tensor(offsets))
        assert cut.shape == (len(rows), step.width)
        for row in range(len(rows)):
            count = step.width if step.count is None else int(step.count[row])
            here = chunk.get(row, [])
            assert cut[row, :count].tolist() == [int(x[row, t]) for t in here]
            assert exists is None or exists[row].tolist() == [True] * count + [False] * (step.width - count)
            assert bool(first[row]) == (bool(here) and (offsets[row] + here[0]) % size == 0)
            if here:
                assert step.index == (offsets[row] + here[0]) // size
    if steps:
        joined = join([take(x, step, 1) for step in steps], steps, time, 1)
        exists = torch.arange(time) < torch.tensor(lengths)[:, None]
        assert torch.equal(joined, torch.where(exists, x, torch.zeros_like(x)))


@settings(deadline=None, derandomize=True, max_examples=30, database=None)
@given(ROWS, st.integers(1, 5))
def test_any_axis_may_be_cut_and_joined(rows, size):
    offsets, lengths = (torch.tensor(column) for column in zip(*rows, strict=True))
    time = max(1, int(lengths.max()))
    x = torch.randn(len(rows), 2, time, 3)
    steps = pieces(offsets % size, lengths, time, size)
    if steps:
        joined = join([take(x, step, 2) for step in steps], steps, time, 2)
        exists = (torch.arange(time) < lengths[:, None])[:, None, :, None]
        assert torch.equal(joined, torch.where(exists, x, torch.zeros_like(x)))


def test_rows_that_agree_are_cut_by_plain_slices():
    for lengths in (None, torch.tensor([6, 6])):
        steps = pieces(torch.tensor([3, 3]), lengths, 6, 4)
        assert [(step.start, step.width, step.count, step.index) for step in steps] == [
            (0, 1, None, 0),
            (1, 4, None, 1),
            (5, 1, None, 2),
        ]
        x = torch.randn(2, 6)
        assert take(x, steps[1], 1).data_ptr() == x[:, 1:].data_ptr()


def test_no_token_at_all_is_no_step():
    assert pieces(torch.tensor([3, 1]), torch.tensor([0, 0]), 5, 4) == []


@settings(deadline=None, derandomize=True, max_examples=50, database=None)
@given(st.integers(0, 4), st.lists(st.integers(0, 5), min_size=1, max_size=4))
def test_the_last_rows_are_those_before_the_padding(size, lengths):
    x = torch.randn(len(lengths), size + 5, 2)
    got = last_rows(x, size, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        assert torch.equal(got[row], x[row, length : length + size])
    assert torch.equal(last_rows(x, size, None), x[:, 5:])
