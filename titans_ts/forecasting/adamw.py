"""AdamW by torch's own function, without `torch.optim.AdamW`: that brings the whole of `torch.compile` and sympy along
the first time one is made, 66 MB of memory, which is a fifth of what a process with torch holds, and a second.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim.adamw import adamw


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
        self.moments = [
            (p, decay, torch.zeros_like(p), torch.zeros_like(p), torch.zeros((), device="cpu"))
            for p, decay in parameters
        ]

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter, *_ in self.moments:
            parameter.grad = None

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move every parameter against its gradient, and by `rate` times its decay towards 0."""
        first, second = self.betas
        for parameter, decay, mean, square, steps in self.moments:
            if parameter.grad is not None:
                adamw(
                    [parameter], [parameter.grad], [mean], [square], [], [steps],
                    foreach=False, amsgrad=False, beta1=first, beta2=second, lr=rate, weight_decay=decay, eps=self.eps,
                    maximize=False,
                )  # fmt: skip
