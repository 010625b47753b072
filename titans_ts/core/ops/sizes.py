"""What the kernels for CUDA devices keep on chip, and how they cut a hidden layer for it."""

from typing import NamedTuple

ON_CHIP = 32768  # numbers of a program's state, of one chunk's mix and of four tiles of its tokens
SLICE = 2048  # numbers of one matrix of a deep memory in a program
SLICES = 64  # into which a hidden layer is cut at most


def padded(size: int) -> int:
    """The size of a tile that holds so many: a power of two, at least 16, which is what a product of tiles takes.

    >>> padded(3), padded(48)
    (16, 64)
    """
    return max(16, 1 << (size - 1).bit_length())


class Cut(NamedTuple):
    """How the hidden layer of a memory is cut into programs.

    width: hidden units of a program. split: programs of one row and head. parts: that, as the size of a tile.
    """

    width: int
    split: int
    parts: int


def cut_of(width: int, hidden: int) -> Cut:
    """The cut of a memory whose heads are so wide and whose hidden layer is.

    >>> cut_of(16, 64), cut_of(48, 192)
    (Cut(width=64, split=1, parts=1), Cut(width=32, split=6, parts=8))
    """
    size = min(padded(hidden), max(16, SLICE // padded(width)))
    split = -(-hidden // size)
    return Cut(size, split, 1 << (split - 1).bit_length())


def on_chip(layers: int, width: int, hidden: int, chunk: int) -> int:
    """Numbers that a program keeps: weights and momentum of its slice, a chunk's mix, and its tokens.

    >>> on_chip(1, 64, 64, 64), on_chip(2, 64, 256, 16)
    (28672, 12544)
    """
    wide, tile = padded(width), padded(chunk)
    across = cut_of(width, hidden).width if layers > 1 else wide
    return 2 * layers * wide * across + tile * tile + 4 * tile * wide
