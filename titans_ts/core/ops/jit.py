"""Compiled functions, kept on disk where there is a place to keep them."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

F = TypeVar("F", bound=Callable[..., Any])


def kept(function: F, **options: Any) -> F:
    """The function, compiled by `numba.njit` with these options when it is first called.

    What was compiled is kept beside the package, in the user's cache or in `NUMBA_CACHE_DIR`; where nothing of that can
    be written to, as in a read-only container, every process compiles for itself.

    >>> kept(abs_of := lambda x: abs(x))(-2.0)
    2.0
    """
    try:
        return cast(F, njit(cache=True, **options)(function))
    except RuntimeError:  # no place to keep it
        return cast(F, njit(**options)(function))
