"""`plot`: the last values, the forecast and its bands, and nothing left behind."""

import io
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.exceptions import NotFittedError

from titans_ts import MemoryConfig, Ridge, SeasonalNaive, TitansForecaster, TrainConfig
from titans_ts.models.config import BackboneConfig

matplotlib = pytest.importorskip("matplotlib")
from matplotlib.dates import num2date  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

SMALL = BackboneConfig(
    dim=8, depth=1, heads=2, window=3, segment=3, memory=MemoryConfig(dim=8, heads=2, depth=1, expansion=2, chunk=16)
)
MAKERS = {
    "titans": lambda: TitansForecaster(
        4, season_length=7, context_length=12, patch_length=4, model=SMALL, train=TrainConfig(steps=0), random_state=0
    ),
    "ridge": lambda: Ridge(4, context_length=12, season_length=7),
    "naive": lambda: SeasonalNaive(4, season_length=7),
}
DAYS = pd.date_range("2024-01-01", periods=60, freq="D")
WIDE = pd.DataFrame(
    np.sin(np.arange(60) / 7 * 2 * np.pi)[:, None] + 0.1 * np.random.default_rng(0).normal(size=(60, 6)),
    index=DAYS,
    columns=list("abcdef"),
)


@pytest.fixture(params=MAKERS)
def forecaster(request):
    return MAKERS[request.param]().fit(WIDE)


def lines(axis):
    return {line.get_label(): line for line in axis.get_lines()}


def test_it_shows_the_last_values_of_the_state_and_the_forecast(forecaster):
    name = type(forecaster).__name__
    (axis,) = forecaster.plot("b").axes
    observed, ahead = lines(axis)["observed"], lines(axis)[name]
    held = 7 if name == "SeasonalNaive" else 12
    np.testing.assert_array_equal(observed.get_ydata(), WIDE["b"].iloc[-held:])
    np.testing.assert_array_equal(observed.get_xdata(), DAYS[-held:].to_numpy())
    np.testing.assert_allclose(ahead.get_ydata(), forecaster.predict(ids="b")["b"], rtol=1e-6)
    np.testing.assert_array_equal(ahead.get_xdata(), DAYS[-1:].to_numpy() + np.arange(1, 5) * np.timedelta64(1, "D"))


def test_the_bands_are_the_intervals_of_predict(forecaster):
    name = type(forecaster).__name__
    (axis,) = forecaster.plot("b", level=[50, 80]).axes
    said = forecaster.predict(ids="b", level=[50, 80])["b"]
    bands = {band.get_label(): band for band in axis.collections}
    assert list(bands) == ["80 % interval", "50 % interval"]
    for level in (50, 80):
        edge = bands[f"{level} % interval"].get_paths()[0].vertices[:, 1]
        for side, value in (("lo", edge.min()), ("hi", edge.max())):
            column = said[f"{name}-{side}-{level}"]
            assert value == pytest.approx(column.min() if side == "lo" else column.max(), rel=1e-6)
    for none in (None, ()):
        assert not forecaster.plot("b", level=none).axes[0].collections


def test_it_draws_the_first_four_series_or_those_named(forecaster):
    assert [axis.get_title() for axis in forecaster.plot().axes] == list("abcd")
    figure = forecaster.plot(ids=["f", "a"])
    assert [axis.get_title() for axis in figure.axes] == ["f", "a"]
    for axis in figure.axes:
        assert (axis.get_xlabel(), axis.get_ylabel()) == ("ds", "y")
        labels = [text.get_text() for text in axis.get_legend().get_texts()]
        assert labels == ["observed", "80 % interval", type(forecaster).__name__]


def test_history_says_how_many_values_to_show(forecaster):
    for asked, shown in ((3, 3), (1000, 7 if isinstance(forecaster, SeasonalNaive) else 12)):
        (axis,) = forecaster.plot("a", history=asked).axes
        np.testing.assert_array_equal(lines(axis)["observed"].get_ydata(), WIDE["a"].iloc[-shown:])
    with pytest.raises(ValueError, match="history=0 must be a whole number"):
        forecaster.plot("a", history=0)


def test_the_picture_moves_on_with_update(forecaster):
    later = WIDE.iloc[:3].set_axis(pd.date_range(DAYS[-1], periods=4, freq="D")[1:])
    (axis,) = forecaster.update(later).plot("a", history=5).axes
    shown = lines(axis)["observed"]
    np.testing.assert_array_equal(shown.get_ydata(), [*WIDE["a"].iloc[-2:], *later["a"]])
    np.testing.assert_array_equal(shown.get_xdata()[-3:], later.index.to_numpy())


def test_what_lies_before_a_series_began_is_no_part_of_the_picture(forecaster):
    young = pd.concat([WIDE["a"].rename("y").reset_index().assign(unique_id="old", ds=DAYS)]).drop(columns="index")
    born = young.iloc[-3:].assign(unique_id="young", ds=DAYS[-3:] + pd.Timedelta(days=3))
    forecaster.fit(young).update(pd.concat([born]))
    (axis,) = forecaster.plot("young").axes
    assert len(lines(axis)["observed"].get_ydata()) == 3


def test_it_draws_into_axes_that_came(forecaster):
    figure = Figure()
    pair = figure.subplots(2)
    assert forecaster.plot("a", ax=pair[0]) is figure
    assert not pair[1].get_lines()
    assert forecaster.plot(["a", "b"], ax=pair) is figure
    assert pair[1].get_title() == "b"
    with pytest.raises(ValueError, match="1 axes came for 4 series"):
        forecaster.plot(ax=pair[0])


@pytest.mark.parametrize(
    "index",
    [
        pd.date_range("2024-03-29", periods=60, freq="h", tz="Europe/Berlin"),
        pd.period_range("2010Q1", periods=60, freq="Q"),
        pd.RangeIndex(60),
    ],
    ids=["zone", "period", "count"],
)
def test_every_kind_of_time_can_be_drawn(index):
    frame = pd.DataFrame({"unique_id": "a", "ds": index, "y": WIDE["a"].to_numpy()})
    figure = Ridge(4, context_length=12, season_length=7).fit(frame).plot()
    page = io.BytesIO()
    figure.savefig(page, format="png")
    assert page.getvalue().startswith(b"\x89PNG")
    last = lines(figure.axes[0])["observed"].get_xdata()[-1]
    if isinstance(index, pd.DatetimeIndex):
        assert last == index[-1].tz_localize(None).to_datetime64()
        assert num2date(figure.axes[0].get_xlim()[0]).year == 2024
    elif isinstance(index, pd.PeriodIndex):
        assert last == index[-1].start_time.to_datetime64()
    else:
        assert last == 59


def test_no_figure_is_left_behind_and_pyplot_is_never_imported():
    program = (
        "import sys, numpy as np\n"
        "from titans_ts import SeasonalNaive\n"
        "naive = SeasonalNaive(2, season_length=2).fit(np.arange(9.0))\n"
        "assert 'matplotlib' not in sys.modules\n"
        "naive.plot()\n"
        "print('matplotlib' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert printed.stdout == "True False\n"


def test_without_matplotlib_the_extra_is_named(forecaster, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'titans-ts\[plot\]'"):
        forecaster.plot()


def test_plotting_needs_a_fit_and_known_series(forecaster):
    with pytest.raises(NotFittedError):
        Ridge().plot()
    with pytest.raises(ValueError, match="are not known"):
        forecaster.plot("z")
