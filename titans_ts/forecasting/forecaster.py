"""`TitansForecaster`: a global forecaster whose memory keeps learning after `fit`.

N series, L context, F future step, Q quantile.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ..core.config import LOST, require
from ..core.state import join_rows, put_rows, select_rows
from ..models.config import BackboneConfig, TimeSeriesConfig, Variant
from ..models.timeseries import TimeSeriesModel
from . import calendar
from .base import Known, PanelForecaster
from .baselines import DECILES, PAST, check_levels, usual_context, validation_ends
from .calibration import Calibration, Intervals, Spoken, calibrate, error_unit, season_scales
from .checkpoint import read_checkpoint, write_checkpoint
from .copula import validation_scores
from .covariates import CovariatePath, fit_covariates, left_over_at, refitted, with_map
from .ensemble import Voice, advance_voices, combined, learn_models
from .fading import Fading, fit_fading
from .forecast import Forecast
from .grain import Grain, fit_grain, smooth
from .gram import Unit
from .inference import PanelState, advance, prefill, rolled
from .intake import groups_of
from .joint import JointPath, More, fit_joint, joint_at, refitted_joint
from .judging import judge, said_before, said_in_validation, together, validated_horizons
from .linear import PULLS, SHARES, LinearPath, apply_linear, fit_linear
from .mix import Part
from .panel import Covariates, DataError, Float, Int, Panel, Schema, shorten
from .saving import params_from_json, restore, to_checkpoint
from .training import Fitted, TrainConfig, give_back
from .transform import fit_arcsinh, plain
from .widths import factors, learn, rows_before, stand, start_widths, target_of, until_next
from .windows import in_proportion

LINEAR_WORK = 2.5e11  # multiplications that the linear path is fitted with, about: a few CPU seconds; windows are drawn
POOLINGS = (math.inf, 8.0, 2.0, 0.3, 0.02)  # how strongly the linear maps of single series are drawn to the shared one
# shares of the linear maps of the whole context, its later half and its last quarter, the whole one alone first
BLENDS = tuple((1 - (b + c) / 4, b / 4, c / 4) for b in range(5) for c in range(5 - b))
# what the linear path of long series is an average of instead
UNITS: tuple[Unit, ...] = ("series", "window")
PARTS = (
    *(Part(unit, math.inf, halvings) for unit in UNITS for halvings in range(3)),
    Part("series", 0.02),
    *(Part(unit, math.inf, usual=True) for unit in UNITS),
    Part("series", 0.02, usual=True),
)


class TitansForecaster(PanelForecaster):
    """Forecast many series with one model, and let its memory learn on from every new observation.

    `fit` learns a closed-form linear path and a Titans backbone that corrects it, one model for all series, and leaves
    every series with a state of its own. Beside them every series has fading memories of its level, trend and season,
    which say more than a shared map where series are short; the validation rows decide on their share. Where those say
    so, the linear path has a map for each series, drawn towards the shared one, a pull towards the mean of all values
    of the series so far, and a share of what the maps leave over at each place of the season; a series with an unknown
    id has the shared map alone, and the mean of what it brings. Of a known id `predict(y=...)` takes a short history as
    a part of the series: what `fit` saw of it still tells its mean, unless the history lies elsewhere. `update` moves
    those states over new rows, in time that does not depend on the length of the past and without an optimiser: the
    neural memory inside rewrites itself (Behrouz et al., "Titans: Learning to Memorize at Test Time"). `predict` reads
    the states and changes nothing.

    `fit(y, sample_weight={"a": 2, "b": 0, ...})` says how much each series counts in what all of them share: in the
    sums of the linear path and of the effect of covariates, in the rates of the fading memories, in how often its
    sequences are drawn to train the backbone, and in all that the validation rows choose. Its state, its units and its
    own map stay its own.

    Parameters
    ----------
    horizon: steps that a forecast reaches; shorter ones can be asked for later.
    freq: step of the time axis ("h", "15min", "MS", an integer, ...); None: inferred.
    season_length: steps of the main season; None: by frequency (24 for hours, 7 for days, 12 for months, ...).
    context_length: steps of the raw window that linear path, scale and head see; what lies further back is the
        memory's. None: two seasons or four horizons, whichever is longer, at most 512 and half of a long series.
    patch_length: steps of one token; None: a power of two up to 16 that puts about sixteen tokens into the context.
    quantiles: levels that are trained and calibrated; `predict` gives any level, between two of these along the normal
        curve and beyond the outermost on along it, as many times as far as the validation rows' errors reach (1 to 4).
    intervals: "auto", "conformal" or "head". "conformal": the quantiles of the validation rows' errors, step by step,
        in units of what each series is restless by (normalised split conformal prediction); how large its own errors
        were scales them where more than one horizon was validated, and how large those at each place of the season were
        where seasons are many. "head": those of the quantile head. "auto": the
        former, or the mean of both where that has less pinball loss. All are made as wide as it takes for the outermost
        interval to cover what it says on the validation rows, and where series are long on training rows besides, so
        that one restless or calm season does not decide. Behind the values of `fit` the width of a series' intervals
        learns from which values fell outside of what was said ahead, in four parts of the horizon, so that they cover
        what they say when errors become larger or smaller; up to twice as wide or half on the scale that the series is
        learnt on, and not of a series with an edge or that `fit` did not see. Where the errors are skewed, the median
        lies off the mean.
        Where all values of a series in `fit` lie whole steps apart, of a quarter of their deviation or more (counts),
        so do quantiles, paths and a median, until a value comes that does not; unless that errs more on the validation
        rows, or there are covariates.
        Nothing is forecast beyond a least or greatest value at which a series stood at least ten times and a tenth of
        its time (nights without sun), unless validation rows lay beyond. Of a short history of a series that `fit` saw
        it must be that of the series.
    point: "mean" or "median", what the point forecast is. With "median" skewed series are learnt on a scale on which
        they are less so, where the validation rows are sure of it (`transform.py`).
    non_negative: for counts, sales and all that cannot fall below 0: neither do point forecast, quantiles and paths,
        which are cut there at the last, covariates included. Negative values in the data are then an error.
    variant: how memory and attention are joined, "lmm", "mac", "mag" or "mal"; None: that of `model`, else "lmm", which
        is as accurate as the others on ETTh1's validation rows and the cheapest to stream.
    model: the backbone; None: two blocks of width 64 with a linear memory.
    train: how to learn (`TrainConfig`: steps, validation rows, linear path on or off); None: its defaults.
    adapt: whether `update` lets the neural memories and the widths of intervals learn; False freezes them as `fit` left
        them, for comparison, while window, scale and fading memories move on.
    warm_start: `fit` again goes on from the present weights where they fit the data.
    time_limit: seconds after which the optimiser stops and the best weights so far are kept; None: no limit. They are
        counted from when `fit` has read the data, so that the closed forms before the optimiser use some of them; it
        takes one step at least, and the closed forms after it come on top.
    known_covariates, past_covariates, static_covariates: columns of the long frame that help to forecast: known ahead
        (holidays, prices, forecasts of the weather; `predict` then needs `future=`), known up to the present, and one
        value a series. New rows bring all of them. Text, bool, category and object columns are categories, all others
        numbers; a category that `fit` did not see counts as the average of those it saw. The known ones have an
        additive effect, the others correct the linear path; each enters as far as the validation rows confirm it, which
        can be not at all.
    calendar: which of "hour", "weekday", "month", "minute_of_day" and "dayofyear" help to forecast. They are made of
        the time axis, which must have dates, on the local wall clock (of periods: at their beginning), and so `predict`
        needs no `future=` for them. Like known covariates, beside which they may stand, they add an effect as far as
        the validation rows confirm it: one for each hour, weekday and month, and a smooth one over the minutes of a day
        and the days of a year.
    group: a column of the long frame with one value a series: those of one value are modelled jointly, and a series
        without a value by itself. multivariate: True joins all series of any kind of input, such as the columns of a
        wide frame (of one series alone it is without meaning, and does nothing). What the linear path leaves over of a
        series is then forecast from the last 48 rows (the older, the coarser) of eight others in its group, those that
        told most in the training rows (of at most 256), as far as they say what the series' own context does not. A map
        of that kind is fitted in closed form to each series of `fit`, where blocks of its training rows want one, and
        with the share that the validation rows of its group confirm by two standard errors. That can be none, and of
        large panels with long horizons it is fewer members, or none: all maps hold 128 MB at most. Members are put side
        by side by the clock. A forecast sees no value of a member that is later than its own series' last; a member
        that has not reported up to there counts with what it has, and says nothing where it has nothing (nor does one
        that is ahead by more than its state holds, a context: members are best updated together), as does one
        that `predict(y=...)` does not bring. Which series belong together is learnt by `fit` and remembered by their
        ids: `update` and `predict` need no group column, and a series that `fit` did not see is forecast by itself.
    ensemble: how many neural corrections are learnt on the same linear path, from different seeds, and averaged; each
        enters with the weight that validation confirms of it. Learning, updating and forecasting take so many times as
        long, but for all that is in closed form; where the corrections have no weight, it changes next to nothing.
    on_gap, on_duplicate, on_bad, on_short: what to do with missing rows ("raise", "mask"), repeated timestamps
        ("raise", "last", "mean"), series that break another rule ("raise", "skip") and series shorter than one patch
        ("pad", "skip", "raise").
    id_col, time_col, target_col: names in long frames.
    random_state: seed of everything random. device: "auto", "cpu" or "cuda".
    verbose: 1 prints the progress of `fit` and `backtest` to stderr.

    Attributes
    ----------
    model_, linear_, fading_: the trained model, the linear path and the rates of the fading memories. transform_: the
        scales on which skewed series are learnt, edge and size of each (infinite: as it is). correction_: the
        weight of the model's correction, 0 to 1, and calibration_: how the parts of the forecast are put together, both
        as validation confirms them.
    grain_: the steps in which values of each series come, 0 where they lie anywhere.
    scores_: `[W, H]`, where the truths of validation windows lay among their forecast's quantiles; for `simulate`.
    covariates_: the effect of the known covariates and the map of the others (`CovariatePath`); None without any.
    joint_: the maps from the members of a group (`JointPath`); None without groups. voices_: the further models of an
        ensemble and the weights of their corrections.
    history_: (step, validation loss) pairs. context_length_, patch_length_, freq_, season_length_, fitted_ids_,
    skipped_.

    Examples
    --------
    >>> import numpy as np
    >>> from titans_ts.forecasting.training import TrainConfig
    >>> y = np.sin(np.arange(400) / 4) + np.linspace(0, 1, 400)
    >>> forecaster = TitansForecaster(horizon=8, train=TrainConfig(steps=5)).fit(y)
    >>> forecaster.predict().shape
    (8,)
    >>> forecaster.update(np.sin(np.arange(400, 410) / 4) + 1).predict(horizon=4).shape
    (4,)
    """

    model_: TimeSeriesModel
    covariates_: CovariatePath | None = None
    joint_: JointPath | None = None
    voices_: tuple[Voice, ...] = ()

    def __init__(
        self,
        horizon: int = 24,
        freq: str | int | None = None,
        season_length: int | None = None,
        context_length: int | None = None,
        patch_length: int | None = None,
        quantiles: Sequence[float] = DECILES,
        intervals: Intervals = "auto",
        point: Literal["mean", "median"] = "mean",
        non_negative: bool = False,
        variant: Variant | None = None,
        model: BackboneConfig | None = None,
        train: TrainConfig | None = None,
        adapt: bool = True,
        warm_start: bool = False,
        time_limit: float | None = None,
        known_covariates: Sequence[str] = (),
        past_covariates: Sequence[str] = (),
        static_covariates: Sequence[str] = (),
        calendar: Sequence[str] = (),
        group: str | None = None,
        multivariate: bool = False,
        ensemble: int = 1,
        on_gap: str = "raise",
        on_duplicate: str = "raise",
        on_bad: str = "raise",
        on_short: str = "pad",
        id_col: str = "unique_id",
        time_col: str = "ds",
        target_col: str = "y",
        random_state: int | np.random.RandomState | None = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.horizon = horizon
        self.freq = freq
        self.season_length = season_length
        self.context_length = context_length
        self.patch_length = patch_length
        self.quantiles = quantiles
        self.intervals = intervals
        self.point = point
        self.non_negative = non_negative
        self.variant = variant
        self.model = model
        self.train = train
        self.adapt = adapt
        self.warm_start = warm_start
        self.time_limit = time_limit
        self.known_covariates = known_covariates
        self.past_covariates = past_covariates
        self.static_covariates = static_covariates
        self.calendar = calendar
        self.group = group
        self.multivariate = multivariate
        self.ensemble = ensemble
        self.on_gap = on_gap
        self.on_duplicate = on_duplicate
        self.on_bad = on_bad
        self.on_short = on_short
        self.id_col = id_col
        self.time_col = time_col
        self.target_col = target_col
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def set_params(self, **params: Any) -> Self:
        """Set parameters; `model__dim`, `model__memory__depth` and `train__steps` reach into the configurations.

        Changes that only hold together (`model__dim` and `model__memory__dim`) are made in one call.
        """
        plain: dict[str, Any] = {}
        inner: dict[str, dict[str, Any]] = {"model": {}, "train": {}}
        for name, value in params.items():
            first, _, rest = name.partition("__")
            if rest and first in inner:
                inner[first][rest] = value
            else:
                plain[name] = value
        for first, changes in inner.items():
            if changes:
                whole = plain.get(first, getattr(self, first))
                whole = {"model": BackboneConfig, "train": TrainConfig}[first]() if whole is None else whole
                plain[first] = _replaced(whole, changes)
        super().set_params(**plain)
        return self

    # Hooks of PanelForecaster

    def _schema(self, fitted: bool) -> Schema | None:
        if fitted:
            return None if self.covariates_ is None else self.covariates_.schema
        given = (self.known_covariates, self.past_covariates, self.static_covariates)
        dates = self._calendar()
        if not any(len(names) for names in (*given, dates)):
            return None
        for kind, names in zip(("known", "past", "static"), given, strict=True):
            require(not isinstance(names, str), f"{kind}_covariates={names!r} is one string: pass ({names!r},).")
        flat = [name for names in given for name in names]
        twice = sorted({name for name in flat if flat.count(name) > 1}, key=str)
        require(not twice, f"{shorten(twice)} is named more than once among the covariates: name each column once.")
        taken = [name for name in flat if name in (self.id_col, self.time_col, self.target_col)]
        require(not taken, f"{shorten(taken)} is the id, the time or the value: it cannot be a covariate too.")
        known, past, static = map(tuple, given)
        return Schema(known, past, static, calendar=dates)

    def _calendar(self) -> tuple[str, ...]:
        require(not isinstance(self.calendar, str), f"calendar={self.calendar!r} is one string: pass a tuple of names.")
        names = tuple(self.calendar)
        strange = [name for name in names if name not in calendar.NAMES]
        require(not strange, f"calendar={names}: {shorten(strange)} is not among {shorten(calendar.NAMES)}.")
        require(len(set(names)) == len(names), f"calendar={names} names something twice: name each once.")
        return names

    def _joined(self, panel: Panel, y: Any) -> tuple[Panel, dict[Hashable, str]]:
        if self.group is None and not self.multivariate:
            return panel if panel.groups is None else replace(panel, groups=None), {}
        require(
            self.group is None or not self.multivariate,
            f"group={self.group!r} joins the series of each group, multivariate=True all of them: pass one of the two.",
        )
        taken = (self.id_col, self.time_col, self.target_col)
        require(self.group not in taken, f"group={self.group!r} is the id, the time or the value: name another column.")
        if self.group is None:
            return replace(panel, groups=np.zeros(len(panel), dtype=np.int64)), {}
        if panel is y or isinstance(y, Panel):
            require(
                panel.groups is not None,
                f"the panel has no groups: set Panel.groups, or pass a frame that has {self.group!r}.",
            )
            return panel, {}
        groups, alone = groups_of(y, panel.ids, self.id_col, self.group, skip=self.on_bad == "skip")
        return replace(panel, groups=groups), alone

    def _company(self, panel: Panel, series: Int, origin: Int) -> tuple[Int, Int]:
        if self.joint_ is None or not self.joint_.speaks:
            return super()._company(panel, series, origin)
        members = self.joint_.members[1 + series] - 1
        steps = np.broadcast_to((panel.starts[series] + origin)[:, None], members.shape)
        pairs = np.unique(np.stack([members[members >= 0], steps[members >= 0]]), axis=1)
        before = np.minimum(pairs[1] - panel.starts[pairs[0]], panel.lengths[pairs[0]])
        return pairs[0][before > 0], before[before > 0]

    def _learn(self, panel: Panel) -> None:
        self._check_choices()
        until = math.inf if self.time_limit is None else time.monotonic() + self.time_limit
        self.levels_ = check_levels(self.quantiles)
        context, patch = self._sizes(panel)
        raw = self._long_enough(panel, patch)
        beside, settings = raw.covariates, self.train or TrainConfig()
        random = check_random_state(self.random_state)
        seed = int(random.randint(2**31))
        ends = validation_ends(raw, settings.validation, self.horizon)
        panel, covariates = self._cleared(raw, ends, context, settings)
        # Where it is off nothing is forecast by it, and the plain one will do.
        ways: Any = {"units": UNITS, "poolings": POOLINGS, "blends": BLENDS, "parts": PARTS}
        ways |= {"pulls": PULLS, "shares": SHARES}
        path = self._path(panel, context, seed, train_ends=ends, **(ways if settings.linear else {}))
        give_back()
        seeds = (int(random.randint(2**31)) if place else seed for place in range(self.ensemble))
        learnt = self._models(panel, path, ends, patch, settings, seeds, until)
        fading = fit_fading(panel, self.horizon, self.season_length_, ends)
        if covariates is not None and beside is not None:
            covariates = with_map(covariates, path, panel, beside, ends, self.season_length_)
        more, joint = added(covariates, panel, beside, context), None
        if panel.groups is not None:
            require(settings.linear, "what a group tells corrects the linear path: leave it on (train__linear).")
            joint = fit_joint(panel, path, more, ends, panel.groups)
            more = together(more, joint_at(joint, panel, context))
        self.calibration_, self.grain_ = self._calibrated(learnt, path, fading, more, raw, panel, ends, settings)
        (self.model_, fitted), *others = learnt
        self.voices_ = tuple(Voice(model, found.weight) for model, found in others)
        self.linear_ = path if settings.linear else None
        self.fading_, self.covariates_, self.joint_ = fading, covariates, joint
        self.correction_, self.history_ = fitted.weight, fitted.history
        del learnt, fitted, others  # as large as all that follows
        give_back()
        self.context_length_, self.patch_length_ = context, patch
        # Measured before all that is in closed form learns the validation rows too.
        self.scores_ = validation_scores(self, raw, ends, PAST * context)
        if settings.refit:
            if covariates is not None:
                covariates = refitted(covariates, raw)
                panel = covariates.without_effect(raw)
            path = self._same_path(path, panel, context, seed)
            if covariates is not None and beside is not None:
                covariates = with_map(
                    covariates, path, panel, beside, panel.lengths, self.season_length_, confirm=False
                )
            if joint is not None:
                self.joint_ = refitted_joint(joint, panel, path, added(covariates, panel, beside, context))
            self.linear_ = path if settings.linear else None
            self.fading_ = fit_fading(panel, self.horizon, self.season_length_)
            self.covariates_ = covariates

    def _check_choices(self) -> None:
        require(self.point in ("mean", "median"), f"point={self.point!r} must be 'mean' or 'median'.")
        require(
            self.intervals in ("auto", "conformal", "head"),
            f"intervals={self.intervals!r} must be 'auto', 'conformal' or 'head'.",
        )
        count = self.ensemble
        require(
            isinstance(count, int | np.integer) and not isinstance(count, bool) and count >= 1,
            f"ensemble={count!r} must be a whole number of models, 1 or more.",
        )
        limit: Any = self.time_limit
        number = isinstance(limit, int | float | np.integer | np.floating) and not isinstance(limit, bool)
        require(
            limit is None or (number and bool(limit >= 0)),
            f"time_limit={limit!r} must be a number of seconds, 0 or more, or None.",
        )

    def _cleared(
        self, panel: Panel, ends: Int, context: int, settings: TrainConfig
    ) -> tuple[Panel, CovariatePath | None]:
        """The panel without the effect of its covariates, and these; without any, on the scales of `transform_`, which
        are found here."""
        self.transform_ = plain(panel.ids)
        if panel.covariates is None and self.point == "median":
            self.transform_ = fit_arcsinh(panel, ends, context, int(self.horizon))
            panel = self.transform_.of(panel)
        if panel.covariates is None:
            return panel, None
        schema = panel.covariates.schema
        require(
            settings.linear or not (schema.past or schema.static),
            "past and static covariates correct the linear path: leave it on (train__linear).",
        )
        covariates = fit_covariates(panel, ends, context, self.horizon, self.season_length_)
        return covariates.without_effect(panel), covariates

    def _path(self, panel: Panel, context: int, seed: int, **ways: Any) -> LinearPath:
        """The linear path of as many windows as `LINEAR_WORK` allows."""
        most = int(LINEAR_WORK / (context * (context + self.horizon)))
        return fit_linear(
            panel,
            context=context,
            horizon=self.horizon,
            max_windows=most,
            season=self.season_length_,
            seed=seed,
            **ways,
        )

    def _same_path(self, path: LinearPath, panel: Panel, context: int, seed: int) -> LinearPath:
        """The same choices, fitted to all rows."""
        whole = self._path(
            panel,
            context,
            seed,
            penalties=(path.penalty,),
            units=(path.unit,),
            poolings=(path.pooling,),
            blends=(path.blend,),
            shares=(path.share,),
            pulls=(path.pulled,),
            mix=path.mix,
        )
        return replace(whole, losses=path.losses)

    def _models(
        self,
        panel: Panel,
        path: LinearPath,
        ends: Int,
        patch: int,
        settings: TrainConfig,
        seeds: Iterable[int],
        until: float,
    ) -> list[tuple[TimeSeriesModel, Fitted]]:
        """The trained models, one a seed, and what training found of each. until: when learning stops, by
        `time.monotonic`."""
        config = TimeSeriesConfig(
            horizon=int(self.horizon),
            context=path.context_length,
            patch=patch,
            quantiles=self.levels_,
            backbone=self._backbone(),
        )
        again = self.warm_start and hasattr(self, "model_")
        return learn_models(
            config,
            path if settings.linear else None,
            panel,
            ends,
            settings,
            seeds,
            [self.model_, *(voice.model for voice in self.voices_)] if again else [],
            self._device(),
            time_limit=(until - time.monotonic()) / self.ensemble,
            verbose=self.verbose,
        )

    def _calibrated(
        self,
        learnt: Sequence[tuple[TimeSeriesModel, Fitted]],
        path: LinearPath,
        fading: Fading,
        more: More | None,
        raw: Panel,
        panel: Panel,
        ends: Int,
        settings: TrainConfig,
    ) -> tuple[Calibration, Grain]:
        """How the parts of the forecast are put together, by the validation rows, and where its quantiles can lie. raw:
        the panel with the effect of covariates, on its own scale."""
        scales = season_scales(panel, ends, self.season_length_)
        said = said_in_validation(learnt, path, panel, ends, settings.linear)
        require(
            self.intervals != "head" or said.head is not None,
            "intervals='head' needs a trained head, and nothing was trained: train for some steps, on longer series, "
            "or take intervals='conformal'.",
        )
        said = said.at(in_proportion(panel, said.series))
        horizons = validated_horizons(said, panel, ends, path.context_length)
        judged = judge(said, fading, more, panel, scales, horizons)
        before = said_before(said, path, panel, ends) if settings.linear else None
        earlier = None if before is None else judge(before, fading, more, panel, scales, horizons)
        del before
        give_back()
        calibration = calibrate(
            judged,
            self.levels_,
            self.intervals,
            self.point,
            earlier=earlier,
            count=len(panel),
            season=self.season_length_,
            mix=settings.fading,
        )
        calibration.habits[:, 4] = [np.inf, *(np.isfinite(panel.series(row)).sum() for row in range(len(panel)))]
        if raw.covariates is not None:  # less their effect values lie anywhere
            return calibration, smooth(len(panel))
        own, factors = 1 + judged.series, np.ones(judged.truth.shape)
        quantiles = calibration.spoken(
            judged.main, judged.fading, judged.ripe, judged.head, judged.unit, judged.surprise, judged.deviation,
            judged.bounds, own, judged.steps, self.levels_, factors,
        ).quantiles  # fmt: skip
        truth, quantiles = (self.transform_.back(part, own) for part in (judged.truth, quantiles))
        scale = season_scales(raw, ends, self.season_length_)[judged.series]
        return calibration, fit_grain(raw, judged.series, truth, quantiles, self.levels_, scale)

    def _start(self, panel: Panel) -> PanelState:
        bent = self.transform_.of(panel)
        state = self._through(self._before(bent), bent, _heard, np.arange(len(panel)), adapt=True)
        return self._loosened(state, panel)

    def _start_to_judge(self, panel: Panel) -> PanelState:
        recent = panel.lengths - self.model_.config.context
        if self._reads_memory or (recent < 0).any():
            return self._start(panel)
        panel = self.transform_.of(panel)
        state = self._before(panel)
        if self.covariates_ is not None:
            panel, beside = self.covariates_.advance(state.covariates, panel)
            state = state._replace(covariates=beside)
        last = panel.stretches(np.arange(len(panel)), recent, panel.lengths - recent)
        seen = np.isfinite(last.values).reshape(len(panel), -1).any(axis=1)
        series = prefill(self.model_, last if seen.all() else panel)  # an empty window has the level before it
        steps = state.steps + torch.from_numpy(panel.lengths).to(state.steps.device)
        return state._replace(series=series, steps=steps, fading=self.fading_.absorb(state.fading, panel))

    @property
    def _reads_memory(self) -> bool:
        """Whether anything of the model but the window's level and scale is in a forecast."""
        said = self.calibration_
        return any((self.correction_, said.head, said.mean, said.median, self.voices_))

    @torch.no_grad()
    def _before(self, panel: Panel) -> PanelState:
        """The states of these series before their first rows."""
        count, steps = len(panel), torch.from_numpy(panel.starts).to(self._device())
        return PanelState(
            series=self.model_.initial_state(count),
            steps=steps,
            fading=self.fading_.start(panel.ids, steps.device),
            widths=start_widths(count, self.model_.config.horizon, steps.device),
            loose=torch.zeros(count, dtype=torch.bool, device=steps.device),
            covariates=() if self.covariates_ is None else self.covariates_.start(panel, steps.device),
            voices=tuple(voice.model.initial_state(count) for voice in self.voices_),
        )

    def _displaced(self, state: PanelState, rows: Int) -> PanelState:
        steps, place = state.steps.clone(), torch.from_numpy(rows)
        # What came together still lies side by side.
        steps[place] = LOST if self.joint_ is None else LOST + steps[place]
        return state._replace(steps=steps)

    def _advance(self, state: PanelState, rows: Int, new: Panel) -> PanelState:
        rows = np.asarray(rows)
        place = torch.from_numpy(rows).to(state.steps.device)

        def heard(part: PanelState) -> tuple[Tensor, ...]:
            return put_rows(_heard(state), place, _heard(part))

        part = self._through(select_rows(state, place), self.transform_.of(new), heard, rows, adapt=self.adapt)
        return put_rows(state, place, self._loosened(part, new))

    def _loosened(self, part: PanelState, new: Panel) -> PanelState:
        """The state after these rows, on their own scale: whether one of them lies off the steps of its series."""
        if not self.grain_.speaks:
            return part
        owner = np.repeat(np.arange(len(new)), new.lengths)
        off = self.grain_.misses(new.values, part.fading.own.cpu().numpy()[owner])
        missed = torch.from_numpy(np.bincount(owner, off, minlength=len(new)) > 0)
        return part._replace(loose=part.loose | missed.to(part.loose.device))

    def _through(
        self,
        part: PanelState,
        new: Panel,
        heard: Callable[[PanelState], tuple[Tensor, ...]],
        rows: Int,
        adapt: bool,
    ) -> PanelState:
        """The state after these rows, on the scales of `transform_`; heard: of all series, when these have come to some
        state, of which they are these rows; adapt: whether the neural memories learn."""
        target = target_of(self.levels_) if self.adapt else None
        if target is None:
            return self._remembered(self._moved(part, new, target), part, new, adapt)
        since = self.calibration_.habits[part.fading.own.cpu().numpy(), 4]
        quiet = rows_before(new, since - part.fading.counts[:, 1].cpu().numpy())
        # Where no forecast reads the memory it may learn of all rows in one go, and the window alone moves on before; a
        # window without a value has its level from the memory.
        at_once = not self._reads_memory and not np.isnan(new.values).any()
        first, taken = part, np.zeros(len(new), dtype=np.int64)
        while True:
            alive = np.flatnonzero(taken < new.lengths)
            if not len(alive):
                return self._remembered(part, first, new, adapt) if at_once else part
            place = torch.from_numpy(alive).to(part.steps.device)
            some, left = select_rows(part, place), (new.lengths - taken)[alive]
            due = np.flatnonzero((until_next(some.widths) == 0) & (taken >= quiet)[alive])
            if len(due):
                wanting = select_rows(some, torch.from_numpy(due).to(place.device))
                spoken = self._spoken(wanting, heard(part), rows[alive[due]])
                some = some._replace(widths=stand(some.widths, due, spoken.standing))
            counts = np.minimum(left, np.where(taken < quiet, quiet, 0)[alive] + until_next(some.widths))
            piece = new.stretches(alive, taken[alive], counts)
            moved = self._moved(some, piece, target)
            moved = moved if at_once else self._remembered(moved, some, piece, adapt)
            part = moved if len(alive) == len(new) else put_rows(part, place, moved)
            taken[alive] += counts

    def _moved(self, part: PanelState, new: Panel, target: float | None) -> PanelState:
        """The state after these rows, none of which goes beyond the next standing forecast of its series, but for what
        the memories have of them; target: see `widths`, None: they stay."""
        if self.covariates_ is not None:
            new, beside = self.covariates_.advance(part.covariates, new)
            part = part._replace(covariates=beside)
        return part._replace(
            series=part.series._replace(window=rolled(part.series.window, new)),
            steps=part.steps + torch.from_numpy(new.lengths).to(part.steps.device),
            fading=self.fading_.absorb(part.fading, new),
            widths=learn(part.widths, new, target),
        )

    def _remembered(self, part: PanelState, before: PanelState, new: Panel, adapt: bool) -> PanelState:
        """The state, which these rows led to from another, with what the memories have of them."""
        if self.covariates_ is not None:
            new, _ = self.covariates_.advance(before.covariates, new)
        return part._replace(
            series=advance(self.model_, before.series, new, adapt=adapt),
            voices=advance_voices(self.voices_, before.voices, new, adapt=adapt),
        )

    def _append(self, state: PanelState, other: PanelState) -> PanelState:
        return join_rows([state, other])

    @torch.no_grad()
    def _forecast(self, state: PanelState, rows: Int) -> Forecast:
        fitted = self.model_.config.horizon
        if self.horizon != fitted:
            raise ValueError(
                f"horizon={self.horizon} was set after fit() had horizon={fitted}: set it back, or fit() again."
            )
        part = select_rows(state, torch.from_numpy(np.asarray(rows)).to(state.steps.device))
        spoken, own = self._spoken(part, _heard(state), np.asarray(rows)), part.fading.own.cpu().numpy()
        point = spoken.median if self.point == "median" else spoken.mean
        points, quantiles = (self.transform_.back(part, own) for part in (point, spoken.quantiles))
        grid = self.grain_.at(own, part.loose.cpu().numpy())
        if grid is not None and self.point == "median":
            points = grid.moved(points, 0.0 if self.non_negative else -math.inf)
        return Forecast(points, quantiles, self.levels_, tails=self.calibration_.tails, grid=grid)

    @torch.no_grad()
    def _spoken(self, part: PanelState, members: tuple[Tensor, ...], rows: Int) -> Spoken:
        """The forecasts of these rows, whose state is `part`, on the scales of `transform_` and without the effect of
        covariates; members: `_heard` of all rows."""
        horizon = self.model_.config.horizon
        reads = self._reads_memory
        said = self.model_.forecast(part.series) if reads else self.model_.level_and_scale(part.series)
        level, scale = said.level.cpu().numpy()[:, None], said.scale.cpu().numpy()[:, None]
        base = np.broadcast_to(level, (len(rows), horizon))
        windows = part.series.window.cpu().numpy()
        own, steps = part.fading.own.cpu().numpy(), part.steps.cpu().numpy()
        usual = self.fading_.usual(part.fading)
        if self.linear_ is not None:
            linear = apply_linear(self.linear_, windows, own, steps, usual)
            base = np.where(np.isnan(linear), base, linear)
        main, head = base, None
        if reads:
            weight, shift, offsets = self.correction_, said.shift.double(), said.offsets
            if self.voices_:
                weight, (shift, offsets) = 1.0, combined(said, weight, self.voices_, part.voices)
            main = base + weight * scale * shift.cpu().numpy()
            head = scale[..., None] * offsets.cpu().numpy()
        if self.covariates_ is not None and self.covariates_.share:
            main = main + self.covariates_.left_over(part.covariates, windows)
        if self.joint_ is not None and self.joint_.speaks:
            held = [each.cpu().numpy() for each in members]
            main = main + self.joint_.left_over(held[0], held[1], held[2], rows)
        surprise = part.fading.surprise.cpu().numpy()
        unit, deviation = error_unit(scale[:, 0], surprise), np.sqrt(np.nan_to_num(usual[:, 1]))
        fading, ripe, bounds = self.fading_.ahead(part.fading, horizon)
        widened = factors(part.widths, horizon)
        return self.calibration_.spoken(
            main, fading, ripe, head, unit, surprise, deviation, bounds, own, steps, self.levels_, widened
        )

    def _recent(self, state: PanelState, rows: Int) -> Float:
        part = select_rows(state, torch.from_numpy(np.asarray(rows)).to(state.steps.device))
        return self.transform_.back(part.series.window.cpu().numpy(), part.fading.own.cpu().numpy())

    def _effect(self, state: PanelState, rows: Int, ahead: Float) -> Float:
        if self.covariates_ is None:
            raise ValueError("this forecaster has no covariates")
        place = torch.from_numpy(np.asarray(rows)).to(state.steps.device)
        return self.covariates_.ahead(select_rows(state.covariates, place), ahead)

    def _read_on(self, y_new: Any, known: Known) -> tuple[Panel, dict[Hashable, str]]:
        new, skipped = super()._read_on(y_new, known)
        if new.covariates is not None and self.covariates_ is not None:
            _check_static(new, new.covariates, known)
        return new, skipped

    # Saving

    def save(self, path: str | Path) -> None:
        """Write the fitted forecaster and the states of its series into the folder `path`.

        Two files: `config.json` and `weights.safetensors`. Nothing in them is code, so that a file from elsewhere can
        be loaded safely.
        """
        check_is_fitted(self, "_known")
        write_checkpoint(path, *to_checkpoint(self))

    @classmethod
    def load(cls, path: str | Path, device: str = "auto") -> Self:
        """The forecaster that `save` wrote: the same numbers, bit for bit, and ready for `update`."""
        config, tensors = read_checkpoint(path)
        forecaster = cls(**{**params_from_json(config["params"]), "device": device})
        restore(forecaster, config, tensors)
        return forecaster

    # Choices

    def _sizes(self, panel: Panel) -> tuple[int, int]:
        """Context and patch length: as configured, else by horizon, season and the length of the series."""
        context = self.context_length
        if context is None:
            context = max(4, usual_context(panel, self.season_length_, self.horizon))
        patch = self.patch_length
        if patch is None:
            patch = next((size for size in (16, 8, 4, 2) if context >= 12 * size), 1)
        require(context >= 1, f"context_length={context} must be 1 or more.")
        require(1 <= patch <= context, f"patch_length={patch} must lie between 1 and context_length={context}.")
        return int(context), int(patch)

    def _long_enough(self, panel: Panel, patch: int) -> Panel:
        """The series to learn from, by `on_short`; those left out are still forecast."""
        require(self.on_short in ("pad", "skip", "raise"), f"on_short={self.on_short!r}: 'pad', 'skip' or 'raise'.")
        short = np.flatnonzero(panel.lengths < patch + self.horizon)
        if not short.size or self.on_short == "pad":
            return panel
        first, count = panel.ids[short[0]], int(panel.lengths[short[0]])
        reason = f"{count} rows, and one patch and one horizon are {patch + self.horizon}"
        if self.on_short == "raise" or len(short) == len(panel):
            raise DataError(
                f"series {first!r} has {reason} ({len(short)} such series). "
                "Fix: on_short='pad' learns from what there is, or set a shorter horizon."
            )
        self.skipped_ = {**self.skipped_, **{panel.ids[row]: f"not learnt from: {reason}" for row in short}}
        return panel.select(np.flatnonzero(panel.lengths >= patch + self.horizon))

    def _backbone(self) -> BackboneConfig:
        backbone = self.model or BackboneConfig()
        return backbone if self.variant is None else replace(backbone, variant=self.variant)

    def _device(self) -> torch.device:
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)


def added(covariates: CovariatePath | None, panel: Panel, beside: Covariates | None, context: int) -> More | None:
    """What past and static covariates `beside` add to the linear forecasts of the panel without effects."""
    return None if covariates is None or beside is None else left_over_at(covariates, panel, beside, context)


def _heard(state: PanelState) -> tuple[Tensor, ...]:
    """What the members of a group hear of each other: windows, steps and rows."""
    return state.series.window, state.steps, state.fading.own


def _check_static(new: Panel, beside: Covariates, known: Known) -> None:
    """A static covariate of a known series is what it was."""
    schema = beside.schema
    old = np.array([known.rows.get(name, -1) for name in new.ids], dtype=np.int64)
    there = np.flatnonzero(old >= 0)
    was, now = known.state.covariates.static.cpu().numpy()[old[there]], beside.static[there]
    owner = np.repeat(np.arange(len(schema.static)), schema.sizes(schema.static))
    row, column = np.nonzero((was != now) & ~(np.isnan(was) & np.isnan(now)))
    if len(row):
        raise DataError(
            f"series {new.ids[there[row[0]]]!r}: static covariate {schema.static[owner[column[0]]]!r} is not what it "
            "was before. Fix: correct it, or fit with it among known_covariates."
        )


def _replaced(config: Any, changes: dict[str, Any]) -> Any:
    """A configuration with all changes made at once, `memory__depth` to the configuration inside it."""
    plain: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    fields = getattr(type(config), "__dataclass_fields__", {})
    for path, value in changes.items():
        name, _, rest = path.partition("__")
        if name not in fields:
            raise ValueError(f"{type(config).__name__} has no parameter {name!r}: there are {', '.join(fields)}.")
        if rest:
            inner.setdefault(name, {})[rest] = value
        else:
            plain[name] = value
    for name, deeper in inner.items():
        plain[name] = _replaced(plain.get(name, getattr(config, name)), deeper)
    return replace(config, **plain)
