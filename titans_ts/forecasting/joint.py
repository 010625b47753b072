"""The joint path: what the other members of its group tell about a series, beyond what its own past does.

A member enters a forecast with W readings: its last eight values by the clock and means of the forty before them,
coarser the further back, without the mean of its context and in units of its own scale; and of these only with what the
context of the target does not make of them (its *innovations*). What the linear path leaves over is regressed on the
innovations of the few members that tell most, series by series, in closed form.
Nothing of a member counts that it had not reported by the time of the forecast, and a value that is missing, was not
reported yet, or is no longer in the member's state says nothing: its innovation is 0. So a series whose group is silent
is forecast as one without a group, and the forecast needs nothing but the contexts that the states hold anyway.

Two doubts stand before it. The members are found in every other block of the training rows, and in the blocks between,
each forecast by the map of all other blocks, the map of a series must lower its error, or there is none. Then the share
of the maps of a group is what the validation rows surely confirm.

Axes: N series, L context, H horizon, K members, W readings of one, R rows that they are of, O last values of the target
itself, B windows, T times, G groups of windows, D = K * W.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .doubt import FEWEST, GROUPS, JUDGED, surely_less
from .gram import solve
from .linear import OWN_NUMBERS, LinearPath, apply_linear
from .panel import Float, Int, Panel
from .windows import Windows, blocks, centre, cut, places, series_scales, spread, windows_between

MEMBERS = 8  # of a group that a series listens to, at most
CANDIDATES = 256  # members of a group that these are chosen of, at most
BINS = (48, 24, 16, 12, 8, 7, 6, 5, 4, 3, 2, 1)  # rows before a forecast at which the readings of a member begin
OWN = 48  # values of the target that say what was to be expected of them, at most
TIMES = 512  # of the clock at which the members are compared, at most
TOLD = 2**21  # numbers that are compared at once, and windows times series that learn, at most
LEARNT = 4096  # windows of one series that its map is fitted to, at most
BLOCKS = 12  # of training rows: in every second one members are found, and in the others maps are judged
STEPS = 12  # of the horizon, by which a map is judged there
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
EXPECTED = 1e-3  # penalty of what is expected of a member, relative to the mean eigenvalue
SHARES = (0.25, 0.5, 0.75, 1.0)
LIMIT = 3.0  # deviations of its context by which others can move a series, at most
GATE = 1.0  # standard errors by which a map must lower the error in blocks of the training rows
FLOOR = 0.01  # of a member's variance that its innovations count as, at least: less is rounding

# series [B] and numbers of their rows [B] to what is added to the linear path's forecasts behind them, [B, H]
More = Callable[[Int, Int], Float]


class Heard(NamedTuple):
    """What a forecast listens to: the last values of the target `[B, O]` and the readings of the members `[B, K, W]`,
    centred and in units of their scales, which of the latter are known, and how far they can move the target `[B]`."""

    own: Float
    others: Float
    known: NDArray[np.bool_]
    limit: Float


@dataclass(frozen=True, eq=False)
class JointPath:
    """Maps from the innovations of members to what the linear path leaves over; row 0 is for strangers, who have none,
    and row `1 + i` is that of series i of `fit`.

    groups `[N]`: which group each series of `fit` is in. members `[1 + N, K]`: the rows that each listens to, 0 where
    there is none. scales `[1 + N]`: the units of values. expected `[1 + N, K, O, W]`: what the target's own values make
    of a member's readings. weights `[1 + N, D, H]`: the maps, times the share that the validation rows confirm.
    penalties `[1 + N]`: with which a map was fitted; infinite: there is none. shares `[1 + N]`: what was confirmed.
    """

    groups: Int
    members: Int
    scales: Float
    expected: Float
    weights: Float
    penalties: Float
    shares: Float

    @property
    def speaks(self) -> bool:
        """Whether any forecast depends on another series."""
        return bool((self.shares > 0).any())

    def left_over(self, windows: Float, steps: Int, own: Int, rows: Int) -> Float:
        """What the members add to the forecasts of these rows `[B]` of the states, `[B, H]`.

        windows `[N, L]`, steps `[N]` and own `[N]`: the last values of every state, the step of the clock that comes
        next, and its row here. Of states of one member the one counts that stands at the time of the forecast, else the
        next later one, which has seen that time too, else the last before it.
        """
        out = np.zeros((len(rows), self.weights.shape[2]))
        spoken = np.flatnonzero(self.shares[own[rows]] > 0)
        if not len(spoken):
            return out
        wanted = rows[spoken]
        members = self.members[own[wanted]]
        found = find(steps, own, members, steps[wanted])
        contexts = shifted(windows[np.maximum(found, 0)], steps[np.maximum(found, 0)] - steps[wanted, None])
        contexts[found < 0] = np.nan
        out[spoken] = self.say(own[wanted], windows[wanted], contexts)
        return out

    def say(self, own: Int, contexts: Float, others: Float) -> Float:
        """What members with these contexts `[B, K, L]` add to the forecasts of rows `own` `[B]` from contexts `[B, L]`
        that end at the same time, `[B, H]`."""
        out = np.zeros((len(own), self.weights.shape[2]))
        order = np.argsort(own, kind="stable")
        for some in np.split(order, np.flatnonzero(np.diff(own[order])) + 1) if len(own) else ():
            row = own[some[0]]
            heard = self.hear(row, contexts[some], others[some])
            said = innovations(heard, self.expected[row]) @ self.weights[row]
            out[some] = self.scales[row] * np.clip(said, -heard.limit[:, None], heard.limit[:, None])
        return out

    def hear(self, row: int | np.int64, contexts: Float, others: Float) -> Heard:
        """What row `row` listens to at windows with these contexts `[B, L]` and `[B, K, L]`."""
        return hear(contexts, others, self.scales[row], self.scales[self.members[row]], self.expected.shape[2])


def hear(contexts: Float, others: Float, scale: float, scales: Float, own: int) -> Heard:
    """The last values of targets and the readings of members `[K]` with these scales. A reading is known where half of
    its values are. A member of which less than half as many values are known as of the target is not listened to: its
    mean would not be that of the same time."""
    count, members, length = others.shape
    centred, _ = centre(contexts)
    seen = np.isfinite(contexts)
    counts = np.maximum(seen.sum(1), 1)
    mine = np.where(seen, centred, 0.0) / scale
    limit = LIMIT * np.sqrt((mine**2).sum(1) / counts)
    each = others.reshape(-1, length)
    seen = np.isfinite(each)
    begin = readings(length)
    size = np.diff(np.append(begin, length))
    known = np.add.reduceat(seen.astype(np.int64), begin, axis=1)
    sums = np.add.reduceat(np.where(seen, centre(each)[0], 0.0), begin, axis=1)
    theirs = (sums / np.maximum(known, 1)).reshape(count, members, -1) / scales[:, None]
    enough = 2 * seen.sum(1).reshape(count, members) >= counts[:, None]
    known = (2 * known >= size).reshape(theirs.shape) & (known > 0).reshape(theirs.shape)
    return Heard(centred[:, -own:] / scale, theirs, known & enough[..., None], limit)


def readings(length: int) -> Int:
    """The rows of a context of this length at which readings begin; each ends where the next one begins.

    >>> readings(10).tolist(), len(readings(100))
    ([0, 2, 3, 4, 5, 6, 7, 8, 9], 12)
    """
    return np.unique(np.maximum(length - np.array(BINS), 0))


def innovations(heard: Heard, expected: Float) -> Float:
    """What members `[K, O, W]` say that the target's own values do not, `[B, D]`; 0 where nothing is known."""
    members, own, width = expected.shape
    made = heard.own @ expected.transpose(1, 0, 2).reshape(own, members * width)
    return np.where(heard.known.reshape(made.shape), heard.others.reshape(made.shape) - made, 0.0)


def find(steps: Int, own: Int, members: Int, at: Int) -> Int:
    """Which state of each member `[B, K]` to listen to at steps `at` `[B]`, -1 where there is none.

    >>> steps, own, members = np.array([5, 7, 9]), np.array([1, 2, 2]), np.array([[1], [2], [2], [3]])
    >>> find(steps, own, members, np.array([5, 5, 9, 5])).T.tolist()
    [[0, 1, 2, -1]]
    """
    times = np.unique(np.concatenate([steps, at]))
    size = len(times) + 1
    order = np.lexsort((steps, own))
    keys = own[order] * size + np.searchsorted(times, steps[order])
    place = np.searchsorted(keys, members * size + np.searchsorted(times, at)[:, None])
    later = order[np.minimum(place, len(order) - 1)]
    before = order[np.maximum(place - 1, 0)]
    there = (place < len(order)) & (own[later] == members)
    found = np.where(there, later, np.where(own[before] == members, before, -1))
    return np.where(members > 0, found, -1)


def shifted(windows: Float, ahead: Int) -> Float:
    """Windows `[B, K, L]` as they end `ahead` steps `[B, K]` earlier: without what came since, and without what lies so
    far back that it is no longer held.

    >>> shifted(np.array([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]), np.array([[1, -1]])).tolist()
    [[[nan, 1.0, 2.0], [5.0, 6.0, nan]]]
    """
    length = windows.shape[2]
    ahead = np.clip(ahead, -length, length)  # further away nothing is left
    place = np.arange(length) - ahead[..., None]
    taken = np.take_along_axis(windows, np.clip(place, 0, length - 1), axis=2)
    return np.where((place >= 0) & (place < length), taken, np.nan)


def contexts_at(panel: Panel, series: Int, steps: Int, length: int) -> Float:
    """The `length` values before these steps of the clock of these series, `[..., L]`; NaN where there is no row, and
    where `series` is -1."""
    rows = (steps - panel.starts[series])[..., None] + np.arange(-length, 0)
    inside = (rows >= 0) & (rows < panel.lengths[series][..., None]) & (series >= 0)[..., None]
    index = np.clip(panel.offsets[series][..., None] + rows, 0, len(panel.values) - 1)
    return np.where(inside, panel.values[index], np.nan)


# Fitting


class Task(NamedTuple):
    """What the maps are fitted to: what `linear` and `more` leave over of the panel, which is that of `fit`."""

    panel: Panel
    linear: LinearPath
    more: More | None
    scales: Float

    def left(self, series: Int, rows: Int, contexts: Float, targets: Float) -> Float:
        """What is left over of targets `[B, H]` behind contexts `[B, L]`, in units of the series."""
        steps, usual = self.panel.starts[series] + rows, self.panel.usual_before(series, rows)
        said = apply_linear(self.linear, contexts, self.linear.rows_of(self.panel.ids)[series], steps, usual)
        if self.more is not None:
            said = said + self.more(series, rows)
        left: Float = (targets - said) / self.scales[series, None]
        return left


def fit_joint(panel: Panel, linear: LinearPath, more: More | None, ends: Int, groups: Int) -> JointPath:
    """The maps of the rows before `ends`, of those series to whom the members of their groups `[N]` tell
    something, with the share that the rows behind confirm of each group.

    >>> from titans_ts.forecasting.door import read
    >>> from titans_ts.forecasting.linear import fit_linear
    >>> first = np.random.default_rng(0).normal(size=400)
    >>> panel, _, _ = read(np.column_stack([first, np.roll(first, 2)]))  # the second says it two steps later
    >>> ends = np.array([320, 320])
    >>> path = fit_joint(panel, fit_linear(panel, 8, 2, train_ends=ends), None, ends, np.zeros(2, dtype=np.int64))
    >>> path.members.tolist(), float(path.shares[2])
    ([[0], [2], [1]], 1.0)
    """
    task = Task(panel, linear, more, series_scales(panel, ends))
    count = np.bincount(groups, minlength=1)
    joined = int((count[groups] > 1).sum())
    width, own = len(readings(linear.context_length)), min(OWN, linear.context_length)
    size = max(joined * width * (own + linear.horizon), 1)
    most = int(min(MEMBERS, max(count.max() - 1, 0), OWN_NUMBERS // size))
    path = JointPath(
        groups=groups,
        members=np.zeros((1 + len(panel), most), dtype=np.int64),
        scales=np.append(1.0, task.scales),
        expected=np.zeros((1 + len(panel), most, own, width)),
        weights=np.zeros((1 + len(panel), most * width, linear.horizon)),
        penalties=np.full(1 + len(panel), np.inf),
        shares=np.zeros(1 + len(panel)),
    )
    for group in np.flatnonzero(count > 1) if most else ():
        inside = np.flatnonzero(groups == group)
        edges = blocks_of(panel, ends, inside)
        path.members[1 + inside, : len(inside) - 1] = 1 + telling(task, ends, inside, edges, own, most)
        fit_maps(path, task, ends, inside, TOLD // joined, edges)
    for group in np.unique(groups[path.penalties[1:] < np.inf]):
        inside = np.flatnonzero((groups == group) & (path.penalties[1:] < np.inf))
        path.shares[1 + inside] = confirmed_share(path, task, ends, inside)
    path.weights[:] *= path.shares[:, None, None]
    return path


def refitted_joint(path: JointPath, panel: Panel, linear: LinearPath, more: More | None) -> JointPath:
    """The same choices, fitted to all rows."""
    task = Task(panel, linear, more, series_scales(panel, panel.lengths))
    whole = replace(
        path,
        scales=np.append(1.0, task.scales),
        expected=np.zeros_like(path.expected),
        weights=np.zeros_like(path.weights),
    )
    spoken = np.flatnonzero(path.shares[1:] > 0)
    fit_maps(whole, task, panel.lengths, spoken, TOLD // max(len(spoken), 1))
    whole.weights[:] *= path.shares[:, None, None]
    return whole


def blocks_of(panel: Panel, ends: Int, inside: Int) -> Int:
    """The steps of the clock between which the blocks of the training rows of these series lie."""
    begin, end = panel.starts[inside].min(), (panel.starts[inside] + ends[inside]).max()
    return np.linspace(begin, end, BLOCKS + 1).round().astype(np.int64)


def telling(task: Task, ends: Int, inside: Int, edges: Int, own: int, most: int) -> Int:
    """Of every series in a group `[M]` the `most` other ones (all, where those are fewer) that tell most, `[M, K]`,
    the one that tells most first.

    At times spread over every other block, what is left over of a series at a few steps of the horizon is compared with
    the readings of the others, both without what the last values of the series make of them.
    """
    panel, linear, count = task.panel, task.linear, len(inside)
    horizon, length = linear.horizon, linear.context_length
    first, last = panel.starts[inside] + 1, panel.starts[inside] + ends[inside] - horizon
    width = len(readings(length))
    every = np.arange(first.min(), max(last.max(), first.min()) + 1)
    every = every[np.searchsorted(edges, every, side="right") % 2 == 1]
    some = int(np.clip(TOLD // (count * width), 1, TIMES))
    times = every[np.unique(np.linspace(0, len(every) - 1, some).round().astype(np.int64))]
    ahead = np.unique(np.geomspace(1, horizon, 4).round().astype(np.int64)) - 1
    values, left = np.zeros((len(times), count, width)), np.zeros((len(times), count, len(ahead)))
    mine = np.zeros((len(times), count, own))
    piece = max(TOLD // (count * (length + horizon)), 1)
    for begin in range(0, len(times), piece):
        now = slice(begin, begin + piece)
        series, at = np.broadcast_to(inside, (len(times[now]), count)), np.repeat(times[now][:, None], count, axis=1)
        contexts = contexts_at(panel, series, at, length)
        targets = contexts_at(panel, series, at + horizon, horizon)
        usable = (at >= first) & (at <= last) & np.isfinite(targets).all(2) & np.isfinite(contexts).any(2)
        heard = hear(contexts.reshape(-1, length), contexts.reshape(-1, 1, length), 1.0, np.ones(1), own)
        unit = task.scales[inside][:, None]
        values[now] = np.where(heard.known, heard.others, 0.0).reshape(*at.shape, -1) / unit
        mine[now] = np.where(usable[..., None], heard.own.reshape(*at.shape, -1) / unit, 0.0)
        row, place = np.nonzero(usable)
        owner, origin = inside[place], times[now][row] - panel.starts[inside[place]]
        left[begin + row, place] = task.left(owner, origin, contexts[usable], targets[usable])[:, ahead]
    kept = np.arange(count)
    if count > CANDIDATES:
        together = left.mean(1, keepdims=True)
        kept = np.sort(np.argsort(-told(values, together, mine[:, :1] * 0), kind="stable")[:CANDIDATES])
    squares = np.square(values[:, kept])
    found = np.full((count, min(most, count - 1)), -1)
    for one in range(count):
        order = kept[np.argsort(-told(values[:, kept], left[:, [one]], mine[:, [one]], squares), kind="stable")]
        best = order[order != one][: found.shape[1]]
        found[one, : len(best)] = inside[best]
    return found


def told(values: Float, left: Float, mine: Float, squares: Float | None = None) -> Float:
    """How much the values `[T, M, W]` of members tell of what is left over of one series `[T, 1, A]`, both without what
    its own values `[T, 1, O]` make of them, `[M]`."""
    times, count, width = values.shape
    flat, target, own = values.reshape(times, -1), left[:, 0], mine[:, 0]
    here = (target != 0).any(1)
    basis, size, _ = np.linalg.svd(own, full_matrices=False)
    basis = basis[:, size > 1e-3 * size.max(initial=0.0)]
    target = target - basis @ (basis.T @ target)
    squares = np.square(values) if squares is None else squares
    whole = np.maximum(here @ squares.reshape(times, -1), 1e-300)
    spread_ = np.maximum(whole - np.square(basis.T @ flat).sum(0), FLOOR * whole)
    power = np.maximum(np.square(target).sum(0), 1e-300)
    scores: Float = (np.square(target.T @ flat) / power[:, None] / spread_).sum(0).reshape(count, width).sum(1)
    return scores


def fit_maps(path: JointPath, task: Task, ends: Int, series: Int, most: int, edges: Int | None = None) -> None:
    """Fill in what is expected of the members of these series, and their maps, of about `most` of the windows before
    `ends`; with blocks between `edges` with a penalty chosen for each, and no map where it errs as much as nothing."""
    panel, context, horizon = task.panel, task.linear.context_length, task.linear.horizon
    every = windows_between(panel, context, horizon, np.zeros_like(ends), ends)
    most = min(max(most, 1), LEARNT)
    for place in series.tolist():
        row = 1 + place
        rows, heard, left = learnt(path, task, only_of(every, place, most), row)
        if not len(rows):
            continue
        path.expected[row] = expectations(heard)
        x = innovations(heard, path.expected[row])
        size = np.sqrt(np.square(x).reshape(len(x), path.members.shape[1], -1).mean((0, 2)))
        size = np.repeat(np.where(size > 0, size, 1.0), path.expected.shape[3])
        x /= size
        if edges is not None:
            path.penalties[row] = chosen_penalty(rows, x, left, horizon, edges - panel.starts[place])
        if path.penalties[row] < np.inf:
            path.weights[row] = solve(x.T @ x, x.T @ left, (path.penalties[row],))[0] / size[:, None]


def learnt(path: JointPath, task: Task, windows: Windows, row: int) -> tuple[Int, Heard, Float]:
    """Rows `[B]`, what row `row` hears and what is left over `[B, H]` at the whole ones of its windows."""
    found: list[tuple[Int, Heard, Float]] = []
    for _, series, rows, contexts, targets in blocks(windows):
        heard = path.hear(row, contexts, company(path, task.panel, series, rows, contexts.shape[1]))
        found.append((rows, heard, task.left(series, rows, contexts, targets)))
    if not found:
        none = np.zeros((0, 0))
        return np.zeros(0, dtype=np.int64), Heard(none, none, none.astype(np.bool_), none), none
    rows_, heards, left = zip(*found, strict=True)
    own, others, known, limit = (np.concatenate(parts) for parts in zip(*heards, strict=True))
    return np.concatenate(rows_), Heard(own, others, known.astype(np.bool_), limit), np.concatenate(left)


def company(path: JointPath, panel: Panel, series: Int, rows: Int, length: int) -> Float:
    """The contexts of the members of these series at the time of these of their rows, `[B, K, L]`."""
    steps = np.repeat((panel.starts[series] + rows)[:, None], path.members.shape[1], axis=1)
    return contexts_at(panel, path.members[1 + series] - 1, steps, length)


def only_of(windows: Windows, row: int, most: int) -> Windows:
    """About `most` windows of this series."""
    counts = np.where(np.arange(len(windows.counts)) == row, windows.counts, 0)
    return spread(windows._replace(counts=counts), most)


def expectations(heard: Heard) -> Float:
    """What the own values make of those of each member, by ridge over the windows where all of these are known,
    `[K, O, W]`."""
    members, width = heard.others.shape[1:]
    expected = np.zeros((members, heard.own.shape[1], width))
    for member in range(members):
        whole = heard.known[:, member].all(1)
        own, values = heard.own[whole], heard.others[whole, member]
        if whole.any():
            expected[member] = solve(own.T @ own, own.T @ values, (EXPECTED,))[0]
    return expected


def chosen_penalty(rows: Int, x: Float, left: Float, horizon: int, edges: Int) -> float:
    """The penalty with which the map of inputs `[B, D]` errs least in every second block of rows, each forecast by that
    of all windows without a target in it; infinite where this is not less than without a map by `GATE` standard errors.

    Members are found in the other blocks: where one looks at many, some seem to tell something, by chance.
    """
    left = left[:, :: -(-left.shape[1] // STEPS)]
    xx, xy = x.T @ x, x.T @ left
    losses: list[Float] = []
    for begin, end in zip(edges[1::2], edges[2::2], strict=True):
        held = slice(*np.searchsorted(rows, [begin, end - horizon + 1]))
        if held.stop <= held.start:
            continue
        near = slice(*np.searchsorted(rows, [begin - horizon + 1, end]))
        maps = solve(xx - x[near].T @ x[near], xy - x[near].T @ left[near], PENALTIES)
        misses = [left[held], *(left[held] - x[held] @ weights for weights in maps)]
        losses.append(np.array([[np.square(miss).mean(), np.abs(miss).mean()] for miss in misses]))
    if len(losses) < FEWEST:
        return np.inf
    together = (np.stack(losses) / np.maximum(np.mean(losses, axis=0)[0], 1e-300)).sum(2)
    best = 1 + int(np.argmin(together[:, 1:].sum(0)))
    gain = together[:, 0] - together[:, best]
    return PENALTIES[best - 1] if gain.mean() > GATE * gain.std(ddof=1) / len(gain) ** 0.5 else np.inf


def confirmed_share(path: JointPath, task: Task, ends: Int, inside: Int) -> float:
    """The share of the maps of these series by which the rows behind `ends` are surely forecast better, squared and
    absolute error together; of several that for which the gain less a standard error is largest, 0 where there is
    none."""
    panel, context, horizon = task.panel, task.linear.context_length, task.linear.horizon
    windows = windows_between(panel, context, horizon, ends, panel.lengths)
    counts = np.zeros_like(windows.counts)
    counts[inside] = windows.counts[inside]
    windows = spread(windows._replace(counts=counts), JUDGED)
    series, rows = places(windows)
    time = (rows - ends[series]) / np.maximum(panel.lengths - ends, 1)[series]
    group = np.empty(len(series), dtype=np.int64)
    group[np.argsort(time, kind="stable")] = np.arange(len(series)) * GROUPS // max(len(series), 1)
    sums, count = np.zeros((1 + len(SHARES), GROUPS, 2)), np.zeros(GROUPS)
    for place, owner, origin, contexts, targets in blocks(windows):
        left = task.left(owner, origin, contexts, targets)
        others = company(path, panel, owner, origin, context)
        said = path.say(1 + owner, contexts, others) / task.scales[owner, None]
        heard = panel.shares[owner]
        count += np.bincount(group[place], heard, minlength=GROUPS)
        for number, share in enumerate((0.0, *SHARES)):
            error = left - share * said
            for kind, size in enumerate((np.square(error), np.abs(error))):
                sums[number, :, kind] += np.bincount(group[place], heard * size.mean(1), minlength=GROUPS)
    if not count.any():
        return 0.0
    means = sums[:, count > 0] / count[count > 0, None]
    losses = (means / np.maximum(means[0].mean(0), 1e-300)).sum(2)
    validated = (panel.lengths - ends)[inside]
    stretches = float(validated[validated > 0].mean()) / horizon
    change = losses - losses[0]
    worst = change.mean(1) + change.std(1, ddof=1) / len(losses[0]) ** 0.5 if len(losses[0]) > 1 else change[:, 0]
    sure = [n for n in range(1, len(losses)) if surely_less(losses[n], losses[0], stretches)]
    return (0.0, *SHARES)[min(sure, key=lambda number: worst[number], default=0)]


def joint_at(path: JointPath, panel: Panel, context: int) -> More:
    """A function of series `[B]` and numbers of their rows `[B]` to what members add to the forecasts behind them."""

    def more(series: Int, origins: Int) -> Float:
        windows = windows_between(panel, context, 0, panel.lengths, panel.lengths)
        out = np.zeros((len(series), path.weights.shape[2]))
        spoken = np.flatnonzero(path.shares[1 + series] > 0)
        contexts, _ = cut(windows, series[spoken], origins[spoken])
        others = company(path, panel, series[spoken], origins[spoken], context)
        out[spoken] = path.say(1 + series[spoken], contexts, others)
        return out

    return more


# Saving

NUMBERS = ("groups", "members", "scales", "expected", "weights", "penalties", "shares")


def joint_tensors(path: JointPath) -> dict[str, Tensor]:
    """The numbers of a path, for a checkpoint."""
    return {f"joint.{name}": torch.from_numpy(np.ascontiguousarray(getattr(path, name))) for name in NUMBERS}


def joint_from_tensors(tensors: dict[str, Tensor]) -> JointPath | None:
    """The inverse of `joint_tensors`; None where there are none."""
    if "joint.groups" not in tensors:
        return None
    return JointPath(**{name: tensors[f"joint.{name}"].numpy() for name in NUMBERS})
