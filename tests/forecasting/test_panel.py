"""The door: every kind of input, every kind of bad data, every calendar."""

import time
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from titans_ts.forecasting.clock import season_length
from titans_ts.forecasting.door import read
from titans_ts.forecasting.panel import DataError, Panel, spans

HOURS = pd.date_range("2024-01-01", periods=6, freq="h")


def long_frame(**columns):
    """Two series of six hours."""
    frame = pd.DataFrame({"unique_id": np.repeat(["a", "b"], 6), "ds": HOURS.append(HOURS), "y": np.arange(12.0)})
    return frame.assign(**columns)


def without(frame, *rows):
    return frame.drop(index=list(rows))


def changed(frame, row, column, value):
    frame = frame.copy()
    frame[column] = frame[column].astype(object)
    frame.loc[row, column] = value
    return frame.infer_objects()


# What a panel is


def test_a_panel_keeps_values_ids_and_what_comes_next():
    panel, _, skipped = read(long_frame())
    assert (panel.ids, panel.freq, panel.lengths.tolist(), skipped) == (("a", "b"), "h", [6, 6], {})
    assert panel.series(1).tolist() == [6, 7, 8, 9, 10, 11]
    assert panel.future_times(0, 2).tolist() == [pd.Timestamp("2024-01-01 06:00"), pd.Timestamp("2024-01-01 07:00")]


def test_cutting_and_extending_are_inverses():
    panel, _, _ = read(long_frame())
    past, later = panel.drop_tail(2), panel.tail(2)
    assert past.future_times(1, 1)[0] == HOURS[4]
    whole = past.extend(later)
    assert whole.values.tolist() == panel.values.tolist()
    assert whole.ends.tolist() == panel.ends.tolist()
    assert panel.drop_head(4).values.tolist() == later.values.tolist()
    assert panel.head(1).select([1, 0]).values.tolist() == [6, 0]


def test_extending_appends_rows_and_admits_new_ids():
    panel, _, _ = read(long_frame())
    new = panel.select([1]).drop_tail(2).extend(panel.select([0]))
    grown = new.extend(panel.select([1]).tail(2))
    assert grown.ids == ("b", "a")
    assert grown.values.tolist() == [*range(6, 12), *range(6)]


def test_extending_over_a_hole_is_refused():
    panel, _, _ = read(long_frame())
    with pytest.raises(ValueError, match="next step"):
        panel.drop_tail(3).extend(panel.tail(2))


def test_a_lead_of_missing_rows_moves_nothing():
    panel, _, _ = read(long_frame())
    led = panel.tail(1).lead(np.array([2, 0]))
    np.testing.assert_array_equal(led.values, [np.nan, np.nan, 5, 11])
    assert led.ends.tolist() == panel.ends.tolist()


def test_spans_of_nothing_are_empty():
    assert spans(np.array([3, 5]), np.array([0, 0])).tolist() == []


# Kinds of input


def test_every_kind_holds_the_same_numbers():
    frame = long_frame()
    wide = frame.pivot(index="ds", columns="unique_id", values="y")
    entries = [{"target": wide[name].to_numpy(), "start": pd.Period(HOURS[0], "h"), "item_id": name} for name in wide]
    stamped = [entry | {"start": HOURS[0]} for entry in entries]
    panel, _, _ = read(frame)
    for kind, extra in [(wide, {}), (wide.to_numpy(), {}), (iter(entries), {}), (stamped, {"freq": "h"}), (panel, {})]:
        got, _, _ = read(kind, **extra)
        assert got.values.tolist() == panel.values.tolist()
        assert got.lengths.tolist() == [6, 6]
    one, _, _ = read(wide["a"])
    assert (one.ids, one.values.tolist()) == (("a",), list(range(6)))
    for vector in (np.arange(6), [0, 1, 2, 3, 4, 5]):
        assert read(vector)[0].values.tolist() == list(range(6))


def test_arrays_have_no_time_and_count_their_rows():
    panel, layout, _ = read(np.zeros((4, 2)), freq="h")
    assert not layout.timed
    assert panel.future_times(1, 2).tolist() == [4, 5]


def test_custom_names_and_readonly_columns():
    frame = long_frame().rename(columns={"unique_id": "item", "ds": "when", "y": "load"})
    panel, layout, _ = read(frame, id_col="item", time_col="when", target_col="load")
    assert panel.values.flags.writeable
    out = layout.write(panel.ids, panel.future_times(0, 1).repeat(2), {"m": np.ones((2, 1))})
    assert list(out) == ["item", "when", "m"]


def test_polars_goes_in_and_comes_out():
    polars = pytest.importorskip("polars")
    frame = long_frame(ds=lambda f: f["ds"].dt.tz_localize("Europe/Berlin"))
    data = polars.DataFrame(
        {
            "unique_id": frame["unique_id"].tolist(),
            "ds": frame["ds"].dt.tz_convert("UTC").dt.tz_localize(None).to_numpy(),
            "y": [None, *range(1, 12)],
        }
    ).with_columns(polars.col("ds").dt.replace_time_zone("UTC").dt.convert_time_zone("Europe/Berlin"))
    panel, layout, _ = read(data)
    np.testing.assert_array_equal(panel.values, [np.nan, *range(1, 12)])
    times = panel.future_times(0, 1).append(panel.future_times(1, 1))
    out = layout.write(panel.ids, times, {"m": np.ones((2, 1))})
    assert isinstance(out, polars.DataFrame)
    assert out["ds"].dtype == data["ds"].dtype
    assert out["ds"].to_list()[0].hour == 6


# Bad data: (what, frame, words of the message)

BAD = {
    "gap": (without(long_frame(), 8, 9), ["'b'", "2 steps", "01:00:00", "04:00:00", "on_gap='mask'"]),
    "duplicate": (pd.concat([long_frame(), long_frame().iloc[[2]]]), ["'a'", "1 rows repeat", "02:00", "on_duplicate"]),
    "infinite": (changed(long_frame(), 7, "y", np.inf), ["'b'", "1 values are infinite", "01:00", "NaN"]),
    "empty": (long_frame().iloc[:0], ["no rows"]),
    "text y": (long_frame(y=lambda f: f["y"].astype(str)), ["text", "'0.0'", "pd.to_numeric"]),
    "object text y": (changed(long_frame(), 3, "y", "n/a"), ["'n/a'", "pd.to_numeric"]),
    "dates as y": (long_frame(y=lambda f: f["ds"]), ["datetime64", "numbers are needed"]),
    "missing y": (long_frame().rename(columns={"y": "load"}), ["'y'", "'load'", "target_col="]),
    "ids in the index": (long_frame().set_index(["unique_id", "ds"]), ["'unique_id'", "reset_index"]),
    "text ds": (long_frame(ds=lambda f: f["ds"].astype(str)), ["text", "2024-01-01", "pd.to_datetime"]),
    "missing ds": (changed(long_frame(), 7, "ds", pd.NaT), ["'b'", "1 rows have no timestamp"]),
    "missing id": (changed(long_frame(), 7, "unique_id", None), ["1 rows have no id", "unique_id"]),
    "missing integer ds": (long_frame(ds=[np.nan, *range(11)]), ["1 of them missing"]),
    "bool ds": (long_frame(ds=True), ["True and False"]),
    "never observed": (long_frame(y=[0.0] * 6 + [np.nan] * 6), ["'b'", "no value was ever observed", "drop"]),
    "off the grid": (changed(long_frame(), 9, "ds", HOURS[3] + pd.Timedelta("7min")), ["'b'", "03:07", "freq='h'"]),
    "unhashable ids": (pd.DataFrame({"unique_id": [[1], [2]], "ds": HOURS[:2], "y": 1.0}), ["cannot be hashed"]),
    "one row each": (long_frame().iloc[[0, 6]], ["freq="]),
    "wide twice": (pd.DataFrame(np.ones((6, 2)), index=HOURS, columns=["a", "a"]), ["'a'", "more than once"]),
    "wide with levels": (
        pd.DataFrame(np.ones((6, 1)), index=HOURS, columns=pd.MultiIndex.from_tuples([("a", "b")])),
        ["2 levels"],
    ),
    "wide text": (pd.DataFrame({"a": ["x"] * 6}, index=HOURS), ["'x'", "to_numeric"]),
    "series by text": (pd.Series([1.0, 2.0], index=["a", "b"]), ["text", "pd.to_datetime"]),
    "three axes": (np.zeros((2, 2, 2)), ["(2, 2, 2)", "[time, series]"]),
    "no data": (3, ["int", "long frame"]),
    "no entries": ([], ["no entries"]),
    "entry without start": ([{"target": [1.0]}], ["entry 0", "'start'"]),
    "entry twice": ([{"target": [1.0], "start": pd.Period("2024", "M"), "item_id": 1}] * 2, ["2 times", "item_id"]),
    "entry of two": ([{"target": np.ones((2, 3)), "start": pd.Period("2024", "M")}], ["(2, 3)"]),
    "entry without freq": ([{"target": [1.0], "start": HOURS[0]}], ["freq="]),
    "entry by text": ([{"target": [1.0], "start": "2024"}], ["pd.Period"]),
    "days of the month": (
        pd.Series(1.0, index=pd.date_range("2024-01-01", periods=9, freq="MS") + pd.Timedelta("14D")),
        ["day 15", "to_period"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_an_error_that_says_what_and_how_to_mend(case):
    frame, words = BAD[case]
    with pytest.raises(DataError) as caught:
        read(frame)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("case", ["gap", "duplicate", "infinite", "missing ds", "never observed", "off the grid"])
def test_a_bad_series_is_left_out_when_asked(case):
    bad = "a" if case == "duplicate" else "b"
    panel, _, skipped = read(BAD[case][0], on_bad="skip")
    assert list(skipped) == [bad]
    assert BAD[case][1][1] in skipped[bad] or case == "off the grid"
    good, _, _ = read(BAD[case][0].query("unique_id != @bad"))
    assert (panel.ids, panel.values.tolist()) == (good.ids, good.values.tolist())


def test_rows_without_an_id_are_reported_under_none():
    panel, _, skipped = read(changed(long_frame(), 11, "unique_id", None), on_bad="skip")
    assert panel.lengths.tolist() == [6, 5]
    assert list(skipped) == [None]


def test_no_series_left_is_an_error():
    with pytest.raises(DataError, match="none is left"):
        read(long_frame(y=np.inf), on_bad="skip")


@pytest.mark.parametrize("policy", ["on_gap", "on_duplicate", "on_bad"])
def test_a_policy_that_does_not_exist_names_those_that_do(policy):
    with pytest.raises(ValueError, match="'raise'"):
        read(long_frame(), **{policy: "fill"})


@pytest.mark.parametrize("column", ["unique_id", "ds", "y"])
def test_every_missing_column_is_named(column):
    with pytest.raises(DataError, match=f"no column '{column}'"):
        read(long_frame().drop(columns=column))


def test_foreign_names_are_not_mistaken_for_a_wide_frame():
    frame = long_frame().rename(columns={"unique_id": "item", "ds": "when", "y": "load"})
    with pytest.raises(DataError, match=r"'item', 'when', 'load'.*id_col="):
        read(frame)


# What is accepted, and as what


def test_a_masked_gap_is_missing_rows():
    panel, _, _ = read(without(long_frame(), 8, 9), on_gap="mask")
    np.testing.assert_array_equal(panel.series(1), [6, 7, np.nan, np.nan, 10, 11])


def test_a_gap_of_centuries_is_not_masked():
    frame = changed(long_frame(), 11, "ds", pd.Timestamp("2224-01-01"))
    with pytest.raises(DataError, match="too much to mask"):
        read(frame, on_gap="mask")


def test_duplicates_are_settled_as_asked():
    extra = pd.DataFrame({"unique_id": "a", "ds": [HOURS[2], HOURS[2]], "y": [10.0, np.nan]})
    frame = pd.concat([long_frame(), extra])
    assert np.isnan(read(frame, on_duplicate="last")[0].series(0)[2])
    assert read(frame, on_duplicate="mean")[0].series(0).tolist() == [0, 1, 6, 3, 4, 5]


def test_unsorted_rows_are_sorted_and_series_keep_their_order_of_appearance():
    frame = long_frame().iloc[::-1]
    panel, _, _ = read(frame)
    assert panel.ids == ("b", "a")
    assert panel.series(1).tolist() == list(range(6))


@pytest.mark.parametrize(
    "y",
    [
        np.arange(12),
        pd.array([None, *range(1, 12)], dtype="Int64"),
        [Decimal(1), None, *range(2, 12)],
        np.arange(12) % 2 == 0,
        np.arange(12, dtype=np.float32),
    ],
)
def test_numbers_of_every_kind_become_floats(y):
    values = read(long_frame(y=y))[0].values
    assert values.dtype == np.float64
    assert np.isnan(values).sum() == pd.isna(pd.Series(y)).sum()


def test_missing_and_constant_values_are_kept():
    panel, _, _ = read(long_frame(y=[np.nan] + [2.0] * 10 + [np.nan]))
    np.testing.assert_array_equal(panel.values, [np.nan] + [2.0] * 10 + [np.nan])


def test_one_row_is_enough_when_the_frequency_is_known():
    assert read(long_frame().iloc[[0, 6]], freq="h")[0].future_times(0, 1)[0] == HOURS[1]
    assert read(long_frame().iloc[:7])[0].lengths.tolist() == [6, 1]


def test_all_missing_is_accepted_for_a_known_series_only():
    frame = long_frame(y=np.nan)
    assert len(read(frame, known={"a", "b"})[0]) == 2
    with pytest.raises(DataError, match="'b'"):
        read(frame, known={"a"})


@pytest.mark.parametrize(
    "ids", [pd.Categorical(np.repeat(["b", "a"], 6)), np.repeat([7, 3], 6), [("x", 1)] * 6 + [("x", 2)] * 6]
)
def test_ids_come_back_as_they_were_given(ids):
    frame = long_frame(unique_id=pd.Series(ids))
    panel, layout, _ = read(frame)
    assert panel.ids == tuple(dict.fromkeys(frame["unique_id"].tolist()))
    out = layout.write(panel.ids, panel.future_times(0, 1).repeat(2), {"m": np.ones((2, 1))})
    assert out["unique_id"].dtype == frame["unique_id"].dtype
    assert tuple(out["unique_id"]) == panel.ids


# Calendars

ALIASES = [
    "h",
    "15min",
    "D",
    "W-WED",
    "ME",
    "MS",
    "QE-NOV",
    "QS-FEB",
    "YE-DEC",
    "YS-JAN",
    "B",
    "BME",
    "BMS",
    "2h",
    "3D",
]
ALIASES += ["2W-SUN", "2ME", "s", "90min", "2QS-JAN", "BQE-DEC", "ms", "36h"]


@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
@pytest.mark.parametrize("alias", ALIASES)
def test_the_calendar_goes_on_as_pandas_has_it(alias, zone):
    times = pd.date_range("2020-01-01", periods=60, freq=alias, tz=zone)
    past = pd.Series(np.arange(50.0), index=times[:50])
    for declared in (None, alias):
        panel, _, _ = read(past, freq=declared)
        future = panel.future_times(0, 10)
        assert future.equals(times[50:])
        assert future.dtype == times.dtype or alias == "ms"
        one, _, _ = read(pd.Series([1.0], index=times[50:51]), clock=panel.clock)
        assert one.starts[0] == panel.ends[0] + 1


@pytest.mark.parametrize("alias", ["M", "Q-NOV", "Y-DEC", "D", "h", "W-SUN", "15min"])
def test_periods_go_on(alias):
    times = pd.period_range("2020-01", periods=60, freq=alias)
    panel, _, _ = read(pd.Series(np.arange(50.0), index=times[:50]))
    assert panel.freq == alias
    assert panel.future_times(0, 10).equals(times[50:])


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_every_resolution_is_kept(unit):
    frame = long_frame(ds=lambda f: f["ds"].astype(f"datetime64[{unit}]"))
    panel, _, _ = read(frame)
    assert panel.future_times(0, 1).dtype == f"datetime64[{unit}]"
    assert panel.future_times(0, 1)[0] == pd.Timestamp("2024-01-01 06:00")


@pytest.mark.parametrize(
    ("declared", "first", "alias"),
    [
        ("M", "2020-01-31", "ME"),
        ("M", "2020-01-01", "MS"),
        ("Q", "2020-03-31", "QE"),
        ("Q", "2020-01-01", "QS-OCT"),
        ("Y", "2020-12-31", "YE"),
        ("Y", "2020-01-01", "YS"),
        ("A", "2020-12-31", "YE"),
        ("H", "2020-01-01", "h"),
        ("15T", "2020-01-01", "15min"),
    ],
)
def test_both_spellings_of_a_frequency_are_read(declared, first, alias):
    times = pd.date_range(first, periods=9, freq=alias)
    panel, _, _ = read(pd.Series(1.0, index=times[:8]), freq=declared)
    assert panel.future_times(0, 1)[0] == times[8]


@pytest.mark.parametrize("declared", ["M", "ME", "MS"])
def test_a_period_index_takes_both_spellings_too(declared):
    times = pd.period_range("2020-01", periods=9, freq="M")
    assert read(pd.Series(1.0, index=times), freq=declared)[0].freq == "M"


def test_days_are_local_and_hours_absolute_over_a_clock_change():
    zone = "Europe/Berlin"
    days = pd.date_range("2024-03-28", periods=6, freq="D", tz=zone)
    panel, _, _ = read(pd.Series(1.0, index=days[:3]))
    assert panel.future_times(0, 3).equals(days[3:])
    hours = pd.date_range("2024-10-26 20:00", periods=12, freq="h", tz=zone)
    panel, _, _ = read(pd.Series(1.0, index=hours[:5]))
    assert panel.future_times(0, 7).equals(hours[5:])


def test_a_midnight_that_does_not_exist_is_the_first_hour_that_does():
    # Cairo moved its clocks at midnight: 26 April 2024 began at one o'clock.
    naive = pd.date_range("2024-04-22", periods=9, freq="D")
    days = naive.tz_localize("Africa/Cairo", nonexistent="shift_forward")
    assert days[4].hour == 1
    panel, _, _ = read(pd.Series(1.0, index=days[:3]))
    assert panel.future_times(0, 6).equals(days[3:])
    whole, _, _ = read(pd.Series(1.0, index=days))
    assert whole.lengths[0] == 9


def test_integer_time_steps_by_its_smallest_difference():
    panel, _, _ = read(pd.Series(1.0, index=[3, 8, 13]))
    assert (panel.freq, panel.future_times(0, 2).tolist()) == (5, [18, 23])
    with pytest.raises(DataError, match="1 steps of freq=5"):
        read(pd.Series(1.0, index=[3, 8, 18]))


@pytest.mark.parametrize(
    ("frame", "freq", "words"),
    [
        (long_frame(), "D", ["freq='D' was declared", "not on its steps"]),
        (long_frame(ds=lambda f: f["ds"].dt.normalize() + (f["ds"] - HOURS[0]) * 24), "h", ["freq='h'", "24 times"]),
        (long_frame(), 2, ["integer step", "'h'"]),
        (long_frame(), "fortnight", ["fortnight", "'15min'"]),
        (long_frame(ds=np.tile(np.arange(6), 2)), "h", ["integers"]),
        (long_frame(ds=lambda f: f["ds"].dt.to_period("h")), "D", ["'D' was declared", "periods of freq 'h'"]),
    ],
)
def test_a_wrong_frequency_says_what_was_declared_and_what_the_data_show(frame, freq, words):
    with pytest.raises(DataError) as caught:
        read(frame, freq=freq)
    for word in words:
        assert word in str(caught.value)


def test_mixed_zones_and_kinds_are_told_apart():
    panel, _, _ = read(long_frame())
    with pytest.raises(DataError, match=r"no time zone was expected.*tz_localize"):
        read(long_frame(ds=lambda f: f["ds"].dt.tz_localize("UTC")), clock=panel.clock)
    with pytest.raises(DataError, match="timestamps were expected"):
        read(long_frame(ds=np.tile(np.arange(6), 2)), clock=panel.clock)


@pytest.mark.parametrize(
    ("freq", "season"),
    [
        *[("h", 24), ("15min", 96), ("10min", 144), ("2h", 12), ("D", 7), ("B", 5), ("W-SUN", 1), ("ME", 12)],
        *[("M", 12), ("QE-DEC", 4), ("QS-JAN", 4), ("Y-DEC", 1), ("YE-DEC", 1), ("s", 1), ("5h", 1), (1, 1)],
    ],
)
def test_seasons_are_those_of_the_benchmarks(freq, season):
    assert season_length(freq) == season


def test_ten_thousand_series_are_read_in_no_time():
    count, length = 10_000, 100
    ids = np.repeat([f"series {i}" for i in range(count)], length)
    times = np.tile(pd.date_range("2024", periods=length, freq="h"), count)
    frame = pd.DataFrame({"unique_id": ids, "ds": times, "y": np.ones(count * length)})
    begin = time.process_time()
    panel, _, _ = read(frame)
    assert time.process_time() - begin < 2
    assert isinstance(panel, Panel)
    assert len(panel) == count
