"""The time-series model: patches in, a forecast at every step out, with a state that streams.

Complete patches are the tokens of the backbone. What has arrived since the last complete patch goes straight to the
head, so that a forecast always knows the newest value, while the memory writes once a patch.

B row (series), T step, N token, K token that the head sees, D model, L step of the context, P step of a patch, F future
step, Q quantile.
"""

from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from ..core.layers import last_rows
from .backbone import Backbone, BackboneState
from .blocks import change_memory
from .config import TimeSeriesConfig

SPREAD_SHAPES = 16  # shapes over (step, level) that the quantile head mixes
LIMIT = 10.0  # of ratios between the scales of two windows, which a level shift can drive anywhere
WINDOWS = 2**20  # values of windows that are held at once: 8 MB


class SeriesState(NamedTuple):
    """Everything the model keeps of a series.

    window: the last `context` values, NaN where missing or before the start. position: steps seen.
    backbone: the state of the blocks. outputs, levels, scales: the last K tokens' outputs, and location and scale of
    the window each was seen in; scale 0 marks a place without a token.
    """

    window: Float[Tensor, "B L"]
    position: Int[Tensor, " B"]
    backbone: BackboneState
    outputs: Float[Tensor, "B K D"]
    levels: Float[Tensor, "B K"]
    scales: Float[Tensor, "B K"]


class Encoded(NamedTuple):
    """Outputs of new tokens, location and scale of their windows, and how many tokens each row has, [B]."""

    outputs: Float[Tensor, "B N D"]
    levels: Float[Tensor, "B N"]
    scales: Float[Tensor, "B N"]
    counts: Int[Tensor, " B"]


class Prediction(NamedTuple):
    """What the head says, in units of the window's scale.

    shift: the expected value's distance from where the forecast starts (the window's level, or a linear forecast).
    offsets: the quantiles' distances from the expected value, never crossing.
    level, scale: location and scale of the window at the time of the forecast.
    """

    shift: Float[Tensor, "B F"]
    offsets: Float[Tensor, "B F Q"]
    level: Float[Tensor, " B"]
    scale: Float[Tensor, " B"]


def window_scale(windows: Float[Tensor, "*shape L"]) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Mean and standard deviation of the observed values; 0 and 0 where there are none, deviation 0 where constant.

    >>> window_scale(torch.tensor([1.0, float("nan"), 3.0], dtype=torch.float64))
    (tensor(2., dtype=torch.float64), tensor(1., dtype=torch.float64))
    """
    observed = ~windows.isnan()
    count = observed.sum(-1).clamp(min=1)
    values = windows.nan_to_num()
    level = values.sum(-1) / count
    squares = (values - level.unsqueeze(-1)).square_().masked_fill_(~observed, 0.0)
    scale = squares.sum(-1).div(count).sqrt()
    # The mean of equal values may differ from them in the last digit: that is no scale, and no level.
    constant = scale <= 1e-10 * torch.maximum(values.amax(-1), -values.amin(-1))
    one = values.gather(-1, observed.byte().argmax(-1, keepdim=True)).squeeze(-1)
    return torch.where(constant, one, level), torch.where(constant, torch.zeros_like(scale), scale)


class TimeSeriesModel(nn.Module):
    """Patches, backbone and head, without the linear path.

    `encode` takes new values and moves the state; `forecast` reads a state. Values are float64, because a window's
    level may be large beside its scale; the network computes in its own precision on standardised values.

    >>> config = TimeSeriesConfig(horizon=4, context=32, patch=8, quantiles=(0.1, 0.5, 0.9))
    >>> model = TimeSeriesModel(config)
    >>> encoded, state = model.encode(torch.randn(2, 50, dtype=torch.float64), model.initial_state(2))
    >>> encoded.outputs.shape, model.forecast(state).offsets.shape
    (torch.Size([2, 6, 64]), torch.Size([2, 4, 3]))
    """

    def __init__(self, config: TimeSeriesConfig) -> None:
        super().__init__()
        self.config = config
        dim, patch, steps = config.backbone.dim, config.patch, config.horizon + config.patch
        self.embed = nn.Linear(2 * patch, dim)
        self.backbone = Backbone(config.backbone)
        # Through a bottleneck: a full map from all tokens to all steps has more parameters than most panels have rows.
        self.narrow = nn.Linear(config.num_tokens * dim, config.rank, bias=False)
        self.far = nn.Linear(config.rank, steps, bias=False)
        self.dropout = nn.Dropout(config.backbone.dropout)
        self.near = nn.Sequential(nn.Linear(2 * patch + dim, dim), nn.GELU())
        self.near_out = nn.Linear(dim, steps)
        self.mix = nn.Linear(2 * dim, SPREAD_SHAPES)
        levels = config.quantiles
        normal = torch.tensor([0.5 * NormalDist().inv_cdf(level) for level in levels])
        rises = torch.cat([normal[:1], normal.diff().expm1().log()])  # the inverse of the softplus of `spread`
        self.base_spread = nn.Parameter(rises.repeat(config.horizon, 1))
        self.spread_shapes = nn.Parameter(0.1 * torch.randn(SPREAD_SHAPES, config.horizon, len(levels)))
        with torch.no_grad():
            # Observed or not is the same for almost every token: what it added would make all keys alike.
            self.embed.weight[:, patch:] = 0
            self.embed.bias.zero_()
            self.far.weight.mul_(config.backbone.residual_init)
            self.near_out.weight.zero_()
            self.near_out.bias.zero_()
            self.mix.weight.mul_(0.1)
            self.mix.bias.zero_()

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the network."""
        return self.embed.weight.dtype

    def initial_state(self, rows: int) -> SeriesState:
        """The state before the first value."""
        config, weight = self.config, self.embed.weight
        exact = torch.zeros(rows, config.num_tokens, dtype=torch.float64, device=weight.device)
        return SeriesState(
            window=exact.new_full((rows, config.context), torch.nan),
            position=torch.zeros(rows, dtype=torch.long, device=weight.device),
            backbone=self.backbone.initial_state(rows),
            outputs=weight.new_zeros(rows, config.num_tokens, config.backbone.dim),
            levels=exact,
            scales=exact,
        )

    def encode(
        self,
        values: Float[Tensor, "B T"],
        state: SeriesState,
        lengths: Int[Tensor, " B"] | None = None,
        *,
        adapt: bool = True,
    ) -> tuple[Encoded, SeriesState]:
        """Outputs of the patches that `values` complete, and the state behind the last value.

        values: float64, NaN where missing. lengths: real values of each row; what lies behind never happened.
        adapt: False lets windows, convolution and attention move on while the memories stand still.
        Under `torch.compile` there are as many outputs as there could be; `counts` says which are real.
        """
        context, patch = self.config.context, self.config.patch
        time = values.shape[1]
        arrived = torch.full_like(state.position, time) if lengths is None else lengths
        both = torch.cat([state.window, values], 1)
        started = state.position % patch
        counts = (started + arrived) // patch
        most = (patch - 1 + time) // patch  # as many as there could be: no graph knows where the series stand
        if not torch.compiler.is_compiling():
            most = int(counts.max()) if len(counts) else 0
        ends = context - started[:, None] + patch * torch.arange(1, most + 1, device=values.device)
        levels, scales, patches = self.scaled_patches(both, ends, state)
        observed = ~patches.isnan()
        tokens = self.embed(self.features(patches, levels, scales))
        written = observed.any(-1) & (adapt and self.config.backbone.writes)
        outputs, backbone = self.backbone(tokens, state.backbone, written, counts)
        encoded = Encoded(outputs, levels, scales, counts)
        keep = self.config.num_tokens
        return encoded, SeriesState(
            window=last_rows(both, context, arrived),
            position=state.position + arrived,
            backbone=backbone,
            outputs=last_rows(torch.cat([state.outputs, outputs.to(state.outputs.dtype)], 1), keep, counts),
            levels=last_rows(torch.cat([state.levels, levels], 1), keep, counts),
            scales=last_rows(torch.cat([state.scales, scales], 1), keep, counts),
        )

    def scaled_patches(
        self, values: Float[Tensor, "B T"], ends: Int[Tensor, "B N"], state: SeriesState
    ) -> tuple[Float[Tensor, "B N"], Float[Tensor, "B N"], Float[Tensor, "B N P"]]:
        """Location and scale of the windows before these ends, and their last patches; some rows at a time, since the
        windows hold every value `context / patch` times."""
        context, patch = self.config.context, self.config.patch
        rows = max(1, WINDOWS // max(1, ends.shape[1] * context))
        found = []
        for some, end, level, scale in zip(
            *(part.split(rows) for part in (values, ends, state.levels[:, -1:], state.scales[:, -1:])), strict=True
        ):
            windows = gather_windows(some, end, context)
            found.append((*self.carried_scale(windows, level, scale), windows[..., -patch:].clone()))
        levels, scales, patches = (torch.cat(parts) for parts in zip(*found, strict=True))
        return levels, scales, patches

    def carried_scale(
        self, windows: Float[Tensor, "B N L"], level: Float[Tensor, "B 1"], scale: Float[Tensor, "B 1"]
    ) -> tuple[Float[Tensor, "B N"], Float[Tensor, "B N"]]:
        """Location and scale of every window; a window without a value keeps those before it."""
        levels, scales = window_scale(windows)
        seen = ~windows.isnan().all(-1)
        place = torch.arange(1, windows.shape[1] + 1, device=windows.device)
        last = torch.where(seen, place, 0).cummax(1).values
        return torch.cat([level, levels], 1).gather(1, last), torch.cat([scale, scales], 1).gather(1, last)

    def features(self, values: Tensor, level: Tensor, scale: Tensor) -> Tensor:
        """Standardised values, 0 where missing, and which of them are observed; in the network's precision."""
        safe = torch.where(scale > 0, scale, torch.ones_like(scale)).unsqueeze(-1)
        standard = ((values - level.unsqueeze(-1)) / safe).nan_to_num()
        return torch.cat([standard, (~values.isnan()).to(standard.dtype)], -1).to(self.dtype)

    def forecast(self, state: SeriesState) -> Prediction:
        """The forecast from a state, which stays as it is."""
        arrived = state.position % self.config.patch
        return self.head(state.window, arrived, state.outputs, state.levels, state.scales)

    def level_and_scale(self, state: SeriesState) -> Prediction:
        """A forecast that says nothing but these, which is cheap."""
        level, scale = self.carried_scale(state.window[:, None], state.levels[:, -1:], state.scales[:, -1:])
        nothing = level.new_zeros(len(level), 0)
        return Prediction(nothing, nothing.unsqueeze(-1), level[:, 0], scale[:, 0])

    def head(
        self,
        windows: Float[Tensor, "B L"],
        arrived: Int[Tensor, " B"],
        outputs: Float[Tensor, "B K D"],
        levels: Float[Tensor, "B K"],
        scales: Float[Tensor, "B K"],
    ) -> Prediction:
        """The forecast from the last K tokens and the `arrived` values since the last of them.

        Tokens were standardised by their own windows: their outputs are brought to the present scale and level. The
        head speaks about the steps from the end of the last complete patch on, so that its phase to the tokens is
        fixed; the steps that have already arrived are cut off.
        """
        config = self.config
        tokens, level, scale = self.present(windows, outputs, levels, scales)
        far = self.far(self.narrow(self.dropout(tokens).flatten(1)))

        place = torch.arange(config.patch, device=windows.device)
        index = (config.context - arrived[:, None] + place).clamp(max=config.context - 1)
        recent = windows.gather(1, index)
        recent = torch.where(place < arrived[:, None], recent, torch.full_like(recent, torch.nan))
        near = self.near(torch.cat([self.features(recent, level, scale), outputs[:, -1]], 1))

        steps = arrived[:, None] + torch.arange(config.horizon, device=windows.device)
        shift = (far + self.near_out(near)).gather(1, steps)
        shapes = self.mix(torch.cat([outputs[:, -1], near], 1))
        spread = self.base_spread + torch.einsum("bs,sfq->bfq", shapes, self.spread_shapes)
        rises = torch.cat([spread[..., :1], functional.softplus(spread[..., 1:])], -1)
        return Prediction(shift, rises.cumsum(-1), level, scale)

    def present(
        self,
        windows: Float[Tensor, "B L"],
        outputs: Float[Tensor, "B K D"],
        levels: Float[Tensor, "B K"],
        scales: Float[Tensor, "B K"],
    ) -> tuple[Float[Tensor, "B K D"], Float[Tensor, " B"], Float[Tensor, " B"]]:
        """The last tokens' outputs at the present level and scale, and those two."""
        level, scale = self.carried_scale(windows[:, None], levels[:, -1:], scales[:, -1:])
        level, scale = level[:, 0], scale[:, 0]
        safe = torch.where(scale > 0, scale, torch.ones_like(scale)).unsqueeze(-1)
        ratio = (scales / safe).clamp(max=LIMIT).to(outputs.dtype)
        drift = torch.where(scales > 0, (levels - level.unsqueeze(-1)) / safe, torch.zeros_like(scales))
        drift = drift.clamp(-LIMIT, LIMIT).to(outputs.dtype)
        # A level moves the output of its token as it would move the token's embedding.
        direction = self.embed.weight[:, : self.config.patch].sum(1)
        return outputs * ratio.unsqueeze(-1) + drift.unsqueeze(-1) * direction, level, scale

    def forecast_at(
        self,
        values: Float[Tensor, "B T"],
        before: SeriesState,
        encoded: Encoded,
        row: Int[Tensor, " S"],
        token: Int[Tensor, " S"],
        arrived: Int[Tensor, " S"],
    ) -> Prediction:
        """Forecasts from inside a pass over `values`, which began with the state `before` at the end of a patch: in
        each `row`, after `token` tokens and `arrived` more values."""
        windows, *last = self.seen_at(values, before, encoded, row, token, arrived)
        return self.head(windows, arrived, *last)

    def seen_at(
        self,
        values: Float[Tensor, "B T"],
        before: SeriesState,
        encoded: Encoded,
        row: Int[Tensor, " S"],
        token: Int[Tensor, " S"],
        arrived: Int[Tensor, " S"],
    ) -> tuple[Float[Tensor, "S L"], Float[Tensor, "S K D"], Float[Tensor, "S K"], Float[Tensor, "S K"]]:
        """What the head sees there: the window, and the last tokens' outputs, levels and scales."""
        context, patch, keep = self.config.context, self.config.patch, self.config.num_tokens
        both = torch.cat([before.window, values], 1)
        index = token.unsqueeze(-1) + torch.arange(keep, device=token.device)

        def last_tokens(old: Tensor, new: Tensor) -> Tensor:
            joined = torch.cat([old, new], 1)
            return joined[row.unsqueeze(-1), index.clamp(max=joined.shape[1] - 1)]

        return (
            windows_at(both, row, context + token * patch + arrived, context),
            last_tokens(before.outputs, encoded.outputs),
            last_tokens(before.levels, encoded.levels),
            last_tokens(before.scales, encoded.scales),
        )


def windows_at(
    values: Float[Tensor, "B T"], row: Int[Tensor, " S"], end: Int[Tensor, " S"], size: int
) -> Float[Tensor, "S L"]:
    """The `size` values of each row before each end.

    >>> windows_at(torch.arange(6.0).view(2, 3), torch.tensor([0, 1]), torch.tensor([2, 3]), 2).tolist()
    [[0.0, 1.0], [4.0, 5.0]]
    """
    return values[row.unsqueeze(-1), (end - size).unsqueeze(-1) + torch.arange(size, device=values.device)]


def gather_windows(values: Float[Tensor, "B T"], ends: Int[Tensor, "B N"], size: int) -> Float[Tensor, "B N L"]:
    """The `size` values before each end; ends beyond the last value give arbitrary windows, for padded places.

    >>> gather_windows(torch.arange(5.0).view(1, 5), torch.tensor([[3, 5]]), 2)[0].tolist()
    [[1.0, 2.0], [3.0, 4.0]]
    """
    index = (ends.clamp(max=values.shape[1]) - size).unsqueeze(-1) + torch.arange(size, device=values.device)
    return values.gather(1, index.flatten(1)).view(*index.shape)


def replace_memories(state: SeriesState, change: Callable[[Tensor], Tensor]) -> SeriesState:
    """The state with `change` applied to what the memory of every block has learnt: to empty or to exchange memories.

    >>> config = TimeSeriesConfig(horizon=4, context=32, patch=8, quantiles=(0.5,))
    >>> state = TimeSeriesModel(config).initial_state(1)
    >>> replace_memories(state, torch.zeros_like).backbone[0].weights[0].abs().max().item()
    0.0
    """
    return state._replace(backbone=tuple(change_memory(part, change) for part in state.backbone))
