"""Which ops exist, and which one runs a given memory."""

from importlib.util import find_spec

from torch import Tensor

from ..config import MemoryConfig
from ..state import MemoryState
from .chunked import chunked
from .contract import Op, Rule, Tokens
from .exact_linear import exact_linear
from .reference import reference


def numba(state: MemoryState, tokens: Tokens, rule: Rule) -> tuple[Tensor, MemoryState]:
    """The streaming form, which imports numba when it is first called; see `numba_cpu`.

    >>> import torch
    >>> one = torch.ones(1, 1, 1, 1)
    >>> start = MemoryState((0 * one,), (0 * one,), (), one[0], torch.zeros(1, dtype=torch.long), one[0])
    >>> numba(start, Tokens(one, one, 3 * one, 0.5 * one), Rule(chunk=1))[0].item()
    3.0
    """
    from .numba_cpu import numba_cpu

    return numba_cpu(state, tokens, rule)


def triton(state: MemoryState, tokens: Tokens, rule: Rule) -> tuple[Tensor, MemoryState]:
    """The dual form in kernels for CUDA devices, which imports Triton when it is first called; see `triton_cuda`.

    >>> triton.__name__ in OPS
    True
    """
    if find_spec("triton") is None:
        raise ModuleNotFoundError(
            "op='triton' needs Triton, which the CUDA builds of torch for Linux bring with them: pip install triton, "
            "or use op='auto'."
        )
    from .triton_cuda import triton_cuda

    return triton_cuda(state, tokens, rule)


OPS: dict[str, Op] = {
    "reference": reference,
    "chunked": chunked,
    "exact_linear": exact_linear,
    "numba": numba,
    "triton": triton,
}


def choose(config: MemoryConfig) -> str:
    """The name of the op that runs this memory: the configured one, else the fastest that has gradients.

    "numba" is never chosen by itself: it has none, and its first call compiles for seconds. Nor is "triton", whose
    kernels compile for seconds with every new shape.

    >>> choose(MemoryConfig(depth=1)), choose(MemoryConfig(depth=2))
    ('exact_linear', 'chunked')
    """
    if config.op != "auto":
        return config.op
    return "exact_linear" if config.exact else "chunked"


def rule_of(config: MemoryConfig) -> Rule:
    """The constants of a memory's update rule.

    A linear memory is exact: it needs no budget, and its cap is only there for the worst. Gates that swing between
    extremes from token to token can drive its momentum into resonance with a repeated key.

    >>> rule_of(MemoryConfig(depth=1)).weight_cap, rule_of(MemoryConfig(depth=2)).weight_cap
    (4000.0, 4.0)
    """
    if config.exact:
        return Rule(chunk=config.chunk, weight_cap=1000 * config.weight_cap)
    return Rule(
        chunk=config.chunk,
        residual=config.residual,
        step_budget=config.step_budget,
        weight_cap=config.weight_cap,
    )
