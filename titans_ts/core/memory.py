"""The neural memory as a layer: projections, gates and convolutions around the update rule.

B row, T time, D model, H head, K key or value of a head, G gate, L layer of the memory network.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from .config import MemoryConfig, require
from .layers import CausalConv, RMSNorm
from .networks import layer_shapes, recall
from .ops.backends import OPS, choose, rule_of
from .ops.contract import Tokens
from .ops.opaque import opaque
from .pieces import noted
from .state import MemoryState, map_state

# What an untrained memory does: it forgets a thousandth a token (half-life 700 tokens) and averages its surprise over
# about two. A linear memory takes nine tenths of the largest step; a deep one, whose chunk shares one budget, spends
# the budget evenly over the chunk.
FORGET, MOMENTUM, STEP = 1e-3, 0.5, 0.9


def logit(p: float) -> float:
    """The inverse of the sigmoid.

    >>> logit(0.5)
    0.0
    """
    return math.log(p / (1 - p))


def largest_step(eta: Tensor) -> Tensor:
    """The largest theta that is stable with momentum eta, whatever the keys.

    At `(1 - eta) / 2` a token closes, in the end, the whole of its error. That alone diverges once the keys turn
    slowly, as those of a season do: momentum goes on along the keys of before. With keys of unit length and a constant
    eta and alpha, whatever alpha is, the circle criterion asks for no more than `(1 - eta)^2 / (1 + eta)`.

    >>> largest_step(torch.tensor([0.0, 0.5, 1.0])).tolist()
    [0.5, 0.1666666716337204, 0.0]
    """
    return (1 - eta) * ((1 - eta) / (1 + eta)).clamp(max=0.5)


class NeuralMemory(nn.Module):
    """A long-term memory that learns while it is used: eq. 13 to 15 as a causal layer with explicit state.

    `y, state = memory(x, state=None, observed=None, lengths=None)` writes every token into the memory's weights by
    gradient descent on its surprise, and reads the weights right after each write. One token, a chunk and a year are
    the same call, and any split of the input gives the same result.

    The step theta is a share in (0, 1) of `largest_step(eta)`, so that no order of keys makes the memory diverge.

    Source: Behrouz et al., "Titans: Learning to Memorize at Test Time", sections 3.1 to 3.3 and 4.4.

    >>> memory = NeuralMemory(MemoryConfig(dim=8, depth=1))
    >>> y, state = memory(torch.zeros(2, 5, 8))
    >>> y, state = memory(torch.zeros(2, 1, 8), state)
    >>> y.shape
    torch.Size([2, 1, 8])
    """

    def __init__(self, config: MemoryConfig) -> None:
        super().__init__()
        self.config = config
        dim, heads = config.dim, config.heads
        self.project = nn.Linear(dim, 3 * dim, bias=False)
        self.conv = CausalConv(3 * dim, config.conv)
        self.num_gates = config.depth if config.layer_gates else 1
        self.gates = nn.Linear(dim, 3 * heads * self.num_gates)
        share = STEP
        if not config.exact:
            largest = (
                largest_step(torch.tensor(MOMENTUM, device="cpu")).item() / (1 - MOMENTUM) if config.momentum else 0.5
            )
            share = min(STEP, (config.step_budget or 0.5) / config.chunk / largest)
        with torch.no_grad():
            self.gates.weight.mul_(0.1)
            bias = torch.tensor([logit(share), logit(MOMENTUM), logit(FORGET)])
            self.gates.bias.copy_(bias[:, None].expand(3, heads * self.num_gates).reshape(-1))
        shapes = layer_shapes(config.head_dim, config.depth, config.expansion)
        self.initial = nn.ParameterList(torch.randn(heads, i, o) / i**0.5 for i, o in shapes)
        with torch.no_grad():
            # Queries and keys start alike, keys as the mean of the last tokens: what is asked for a token is then, from
            # the first step of training on, what came with and right after its like. And a memory that holds nothing
            # says nothing.
            self.project.weight[dim : 2 * dim] = self.project.weight[:dim]
            self.conv.weight[dim : 2 * dim] = 1 / config.conv
            if not config.residual:
                self.initial[-1].zero_()
        self.norm = RMSNorm(config.head_dim)
        self.gate = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.persistent = nn.Parameter(torch.randn(config.persistent, dim)) if config.persistent else None

    def initial_state(self, rows: int) -> MemoryState:
        """The state before the first token: learned weights, and the persistent tokens absorbed (eq. 19)."""
        state = self.blank_state()
        if self.persistent is not None:
            _, state = self._pass(self.persistent[None].to(state.spent.dtype), state, None, None)
        many = map_state(lambda leaf: leaf.expand(rows, *leaf.shape[1:]), state)
        return many._replace(offset=noted(many.offset, self.config.persistent % self.config.chunk))

    def blank_state(self) -> MemoryState:
        """One row that has absorbed nothing, in float32, or in float64 where the parameters are."""
        dtype = torch.float64 if self.gates.weight.dtype == torch.float64 else torch.float32
        weights = tuple(weight[None].to(dtype) for weight in self.initial)
        return MemoryState(
            weights=weights,
            momentum=tuple(torch.zeros_like(weight) for weight in weights),
            anchor=() if self.config.exact else weights,
            spent=weights[0].new_zeros(1, self.config.heads, self.num_gates),
            offset=noted(torch.zeros(1, dtype=torch.long, device=weights[0].device), 0),
            recent=self.conv.blank(1, weights[0]),
        )

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: MemoryState | None = None,
        observed: Bool[Tensor, "B T"] | None = None,
        lengths: Int[Tensor, " B"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], MemoryState]:
        """Write and read every token.

        observed: False where the observation is missing: weights and momentum stand still, the clock goes on.
        lengths: real tokens of each row; what lies behind is padding and never happened (its output is arbitrary).
        """
        require(
            x.dim() == 3 and x.shape[-1] == self.config.dim,
            f"x has shape {tuple(x.shape)}; NeuralMemory(dim={self.config.dim}) wants [rows, time, {self.config.dim}].",
        )
        if state is None:
            state = self.initial_state(x.shape[0])
        require(
            state.offset.shape[0] == x.shape[0],
            f"the state has {state.offset.shape[0]} rows and x has {x.shape[0]}: pass the state of the same rows.",
        )
        if x.shape[1] == 0:
            return x, state
        return self._pass(x, state, observed, lengths)

    def _pass(
        self, x: Tensor, state: MemoryState, observed: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, MemoryState]:
        mixed, recent = self.conv(self.project(x), state.recent, lengths)
        queries, keys, values = (self.split_heads(part) for part in mixed.chunk(3, -1))
        gates = self.gates(x).unflatten(-1, (3, self.config.heads, self.num_gates))
        theta, eta, alpha = gates.permute(2, 0, 3, 1, 4)
        with torch.autocast(x.device.type, enabled=False):
            exact = state.spent.dtype  # the memory works in its state's precision, whatever the compute dtype
            eta = eta.to(exact).sigmoid() if self.config.momentum else None
            theta = theta.to(exact).sigmoid() * (0.5 if eta is None else largest_step(eta))
            tokens = Tokens(
                queries=functional.normalize(queries.to(exact), dim=-1),
                keys=functional.normalize(keys.to(exact), dim=-1),
                values=values.to(exact),
                theta=theta,
                eta=eta,
                alpha=alpha.to(exact).sigmoid() if self.config.forgetting else None,
                observed=observed,
                lengths=lengths,
            )
            name, rule = choose(self.config), rule_of(self.config)
            if torch.compiler.is_compiling():
                read, state = opaque(name, state, tokens, rule)
            else:
                read, state = OPS[name](state, tokens, rule)
        y = self.finish(read.to(x.dtype), x)
        return y, state._replace(recent=recent.to(state.recent.dtype))

    def split_heads(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B H T K"]:
        """Heads as an axis of their own."""
        out: Tensor = x.unflatten(-1, (self.config.heads, self.config.head_dim)).movedim(2, 1)
        return out

    def finish(self, read: Float[Tensor, "B H T K"], x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Norm, output gate and output projection (section 4.4)."""
        if self.config.normalize:
            read = self.norm(read)
        out: Tensor = self.out(read.movedim(1, 2).flatten(2) * self.gate(x).sigmoid())
        return out

    def lookup(
        self, weights: tuple[Float[Tensor, "B H _ _"], ...], queries: Float[Tensor, "B T D"]
    ) -> Float[Tensor, "B T D"]:
        """Read given weights at given queries and write nothing (eq. 21)."""
        with torch.autocast(queries.device.type, enabled=False):
            exact = weights[0].dtype
            unit = functional.normalize(self.split_heads(queries.to(exact)), dim=-1)
            read = recall(weights, unit, residual=self.config.residual)
        return read.to(queries.dtype).movedim(1, 2).flatten(2)
