"""AdamW, step by step as `torch.optim.AdamW` takes them, bit for bit on a CPU.

torch's own brings the whole of `torch.compile` and sympy along the first time one is made: 66 MB of memory, which is a
fifth of what a process with torch holds, and a second.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class AdamW:
    """Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (arXiv 1711.05101), algorithm 2.

    parameters: each with its weight decay. A parameter without a gradient stands still. The learning rate is said at
    every step.

    >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
    >>> optimizer = AdamW([(weight, 0.0)])
    >>> (2 * weight).sum().backward()
    >>> optimizer.step(0.25)
    >>> weight.item()
    0.75
    """

    def __init__(
        self, parameters: Iterable[tuple[Tensor, float]], betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        self.betas, self.eps = betas, eps
        self.moments = [(p, decay, torch.zeros_like(p), torch.zeros_like(p)) for p, decay in parameters]
        self.steps = [0] * len(self.moments)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter, *_ in self.moments:
            parameter.grad = None

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move every parameter against its gradient, and by `rate` times its decay towards 0."""
        first, second = self.betas
        for place, (parameter, decay, mean, square) in enumerate(self.moments):
            if parameter.grad is None:
                continue
            self.steps[place] += 1
            parameter.mul_(1 - rate * decay)
            mean.lerp_(parameter.grad, 1 - first)
            square.mul_(second).addcmul_(parameter.grad, parameter.grad, value=1 - second)
            size = rate / (1 - first ** self.steps[place])
            root = (1 - second ** self.steps[place]) ** 0.5
            parameter.addcdiv_(mean, (square.sqrt() / root).add_(self.eps), value=-size)
