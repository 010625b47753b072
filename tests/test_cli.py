"""The command line: CSV in, CSV out, one line when something is wrong."""

import io
import os
import subprocess
import sys

import jaxtyping
import numpy as np
import pandas as pd
import pytest

from titans_ts import TitansForecaster
from titans_ts.cli import main

DAYS = pd.date_range("2024-01-01", periods=70, freq="D")
IDS = ("007", "7", "café, au lait")


def frame():
    random = np.random.default_rng(0)
    parts = [
        pd.DataFrame({"unique_id": name, "ds": DAYS, "y": place + np.sin(np.arange(70)) + 0.1 * random.normal(size=70)})
        for place, name in enumerate(IDS)
    ]
    return pd.concat(parts)


PAST, LATER = frame()[lambda f: f["ds"] < DAYS[60]], frame()[lambda f: f["ds"] >= DAYS[60]]


class Result:
    """What a run of the program left: exit code, standard output and standard error."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    def table(self):
        return pd.read_csv(io.StringIO(self.out), dtype={"unique_id": str}, parse_dates=["ds"])


@pytest.fixture
def titans(monkeypatch, capfd):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["titans-ts", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        return Result(end.value.code or 0, *capfd.readouterr())

    return run


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with `past.csv`, `later.csv` and the forecaster `model` that the program made of the first."""
    folder = tmp_path_factory.mktemp("cli")
    PAST.to_csv(folder / "past.csv", index=False)
    LATER.to_csv(folder / "later.csv", index=False)
    arguments = ["fit", "past.csv", "--out", "model", "--horizon", "4", "--time-limit", "0", "--context", "12"]
    program = [sys.executable, "-c", "import sys; from titans_ts.cli import main; main()", *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("step 1/150 ")  # no time at all: one step, which is said
    assert done.stderr.splitlines()[-1] == "3 series; saved to model"
    assert sorted(path.name for path in folder.iterdir()) == ["later.csv", "model", "past.csv"]
    return folder


@pytest.fixture
def model(files, tmp_path):
    """A copy of the forecaster, to be changed."""
    TitansForecaster.load(files / "model").save(tmp_path / "model")
    return tmp_path / "model"


def test_predict_writes_the_forecasts_as_csv(titans, files):
    result = titans("predict", files / "model")
    assert (result.code, result.err) == (0, "")
    table = result.table()
    assert list(table) == ["unique_id", "ds", "TitansForecaster"]
    assert table["unique_id"].tolist() == [name for name in IDS for _ in range(4)]
    assert table["ds"].tolist() == [*DAYS[60:64]] * 3
    expected = TitansForecaster.load(files / "model").predict()
    np.testing.assert_allclose(table["TitansForecaster"], expected["TitansForecaster"], rtol=1e-14)


def test_levels_steps_and_a_file_can_be_asked_for(titans, files, tmp_path):
    result = titans("predict", files / "model", "--level", "80", "--level", "95", "--horizon", "2")
    table = result.table()
    names = ["lo-95", "lo-80", "hi-80", "hi-95"]
    assert list(table)[3:] == [f"TitansForecaster-{name}" for name in names]
    assert len(table) == 6
    assert (np.diff(table.iloc[:, 3:].to_numpy(), axis=1) > 0).all()
    to_file = titans("predict", files / "model", "--out", tmp_path / "forecast.csv")
    assert (to_file.code, to_file.out, to_file.err) == (0, "", "")
    assert (tmp_path / "forecast.csv").read_text() == titans("predict", files / "model").out


def test_quantiles_can_be_asked_for(titans, files):
    said = titans("predict", files / "model", "--quantiles", "0.1", "--quantiles", "0.975", "--level", "80").table()
    assert list(said)[3:] == [f"TitansForecaster-{name}" for name in ("lo-80", "hi-80", "ql0.1", "ql0.975")]
    np.testing.assert_array_equal(said["TitansForecaster-ql0.1"], said["TitansForecaster-lo-80"])
    assert (said["TitansForecaster-ql0.975"] > said["TitansForecaster-hi-80"]).all()


def test_the_kinds_of_point_and_intervals_are_options(titans, files, tmp_path):
    options = [
        "--horizon",
        "4",
        "--time-limit",
        "0",
        "--context",
        "12",
        "--point",
        "median",
        "--intervals",
        "conformal",
    ]
    assert titans("fit", files / "past.csv", "--out", tmp_path / "model", *options).code == 0
    loaded = TitansForecaster.load(tmp_path / "model")
    assert (loaded.point, loaded.intervals) == ("median", "conformal")
    said = titans("predict", tmp_path / "model", "--quantiles", "0.5").table()
    np.testing.assert_allclose(said["TitansForecaster-ql0.5"], said["TitansForecaster"], rtol=1e-9)


def test_two_rows_are_too_few_to_train_on(titans, tmp_path):
    (tmp_path / "two.csv").write_text("unique_id,ds,y\na,2024-01-01,1\na,2024-01-02,2\n")
    done = titans("fit", tmp_path / "two.csv", "--out", tmp_path / "model", "--horizon", "1")
    assert done.code == 0
    assert done.err.splitlines()[0] == "no step: no series has 3 rows to train on"
    assert done.err.count("\n") == 2
    assert titans("predict", tmp_path / "model").table()["TitansForecaster"].between(1, 2).all()


def test_update_lets_new_rows_in_and_predict_goes_on_from_there(titans, files, model):
    before = titans("predict", model).table()
    done = titans("update", model, files / "later.csv")
    assert (done.code, done.out, done.err) == (0, "", "")
    after = titans("predict", model).table()
    assert after["ds"].tolist() == [*pd.date_range("2024-03-11", periods=4)] * 3
    assert after["unique_id"].equals(before["unique_id"])
    expected = TitansForecaster.load(files / "model").update(LATER).predict()
    np.testing.assert_allclose(after["TitansForecaster"], expected["TitansForecaster"], rtol=1e-14)


def test_ids_stay_text_whatever_else_is_in_the_file(titans, model, tmp_path):
    """Alone in a file, 007 and 7 would both be read as the number 7: a new series, and a wrong one."""
    for name in IDS[:2]:
        LATER[LATER["unique_id"] == name].to_csv(tmp_path / "one.csv", index=False)
        assert titans("update", model, tmp_path / "one.csv").code == 0
    ends = titans("predict", model, "--horizon", "1").table().set_index("unique_id")["ds"]
    assert ends.to_dict() == {"007": pd.Timestamp("2024-03-11"), "7": pd.Timestamp("2024-03-11"), IDS[2]: DAYS[60]}


def test_names_of_columns_and_whole_number_times_are_options(titans, tmp_path):
    table = PAST.assign(ds=PAST.groupby("unique_id").cumcount())
    table.columns = ["item", "step", "load"]
    table.to_csv(tmp_path / "y.csv", index=False)
    names = ["--id-col", "item", "--time-col", "step", "--target-col", "load"]
    options = ["--horizon", "2", "--time-limit", "0", "--variant", "mag", "--seed", "3"]
    assert titans("fit", tmp_path / "y.csv", "--out", tmp_path / "model", *names, *options).code == 0
    out = pd.read_csv(io.StringIO(titans("predict", tmp_path / "model").out))
    assert list(out) == ["item", "step", "TitansForecaster"]
    assert out["step"].tolist() == [60, 61] * 3


BAD = {
    "no file": (["fit", "none.csv", "--out", "m"], "none.csv"),
    "no model": (["predict", "none"], "none is no saved forecaster"),
    "a model that is none": (["predict", "."], "no saved forecaster"),
    "an unreadable date": (["fit", "dates.csv", "--out", "m"], "dates.csv: "),
    "an empty file": (["fit", "empty.csv", "--out", "m"], "empty.csv: "),
    "a torn file": (["fit", "torn.csv", "--out", "m"], "torn.csv: "),
    "no target": (["fit", "past.csv", "--out", "m", "--target-col", "load"], "no column 'load'"),
    "a gap": (["fit", "gap.csv", "--out", "m"], "'007'"),
    "an unknown policy": (["fit", "past.csv", "--out", "m", "--on-gap", "cry"], "on_gap='cry'"),
    "an unknown wiring": (["fit", "past.csv", "--out", "m", "--variant", "lstm"], "lmm, mac, mag, mal"),
    "a folder in use": (["fit", "past.csv", "--out", "."], "holds other files"),
    "a file in the way": (["fit", "past.csv", "--out", "past.csv"], "is a file"),
    "too long a horizon": (["predict", "model", "--horizon", "9"], "longer than the fitted horizon of 4"),
    "an impossible level": (["predict", "model", "--level", "100"], "between 0 and 100"),
    "rows that are known": (["update", "model", "past.csv"], "known already"),
    "no time at all and less": (["fit", "past.csv", "--out", "m", "--time-limit", "-1"], "time_limit=-1.0 must be"),
    "an unknown point": (["fit", "past.csv", "--out", "m", "--point", "mode"], "point='mode'"),
    "unknown intervals": (["fit", "past.csv", "--out", "m", "--intervals", "wide"], "intervals='wide'"),
    "an impossible quantile": (["predict", "model", "--quantiles", "1"], "between 0 and 1"),
    "a context that is none": (["benchmark", "ltsf", "--out", "m", "--context", "long"], "--context 'long' must be"),
    "no such variation": (["benchmark", "ablation", "--out", "m", "--variation", "big"], "'memory depth 3'"),
    "no such demo": (["demo", "moon"], "'moon'"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_one_line_and_exit_code_2(case, titans, files, monkeypatch):
    monkeypatch.chdir(files)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the checks of these tests would speak first
    (files / "dates.csv").write_text("unique_id,ds,y\na,yesterday,1\na,today,2\n")
    (files / "empty.csv").write_text("")
    (files / "torn.csv").write_text("unique_id,ds,y\na,2024-01-01,1,2,3\nb\na,2024,1,2,3,4\n")
    PAST.drop(index=5).to_csv(files / "gap.csv", index=False)
    arguments, words = BAD[case]
    before = sorted(path.name for path in files.iterdir())
    done = titans(*arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1, done.err
    assert done.err.startswith("titans-ts: ")
    assert words in done.err
    assert sorted(path.name for path in files.iterdir()) == before


@pytest.mark.parametrize(
    "arguments", [["frobnicate"], ["predict"], ["fit", "past.csv"], ["predict", "m", "--level", "x"]]
)
def test_wrong_usage_is_exit_code_2(titans, arguments):
    result = titans(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert "Usage" in result.err


def test_help_names_every_command(titans):
    result = titans("--help")
    assert result.code == 0
    for command in ("demo", "fit", "predict", "update", "benchmark"):
        assert command in result.out
    shown = titans("benchmark", "--help").out
    assert all(name in shown for name in ("etth1", "ltsf", "recall", "stream", "tables"))
    for command in ("demo", "fit", "predict", "update"):
        assert titans(command, "--help").code == 0


def test_nothing_asked_shows_the_help(titans):
    assert "predict" in titans().out


def test_covariates_come_from_the_columns_that_are_named(titans, tmp_path):
    promo = frame().assign(promo=lambda f: np.where(np.arange(len(f)) % 3, "no", "yes"), place="here")
    promo["y"] += 5.0 * (promo["promo"] == "yes")
    past, later = promo[promo["ds"] < DAYS[60]], promo[(promo["ds"] >= DAYS[60]) & (promo["ds"] < DAYS[64])]
    past.to_csv(tmp_path / "past.csv", index=False)
    later.drop(columns="y").to_csv(tmp_path / "future.csv", index=False)
    options = ["--horizon", "4", "--time-limit", "0.1", "--context", "12", "--known", "promo", "--static", "place"]
    assert titans("fit", tmp_path / "past.csv", "--out", tmp_path / "model", *options).code == 0
    said = titans("predict", tmp_path / "model", "--future", tmp_path / "future.csv").table()
    assert (said["TitansForecaster"] - later["y"].to_numpy()).abs().max() < 2
    refused = titans("predict", tmp_path / "model")
    assert refused.code == 2
    assert "predict() needs future=" in refused.err


def test_the_calendar_and_the_floor_are_options(titans, tmp_path):
    PAST.assign(y=PAST["y"] - 2 * PAST["y"].min()).to_csv(tmp_path / "past.csv", index=False)
    options = ["--horizon", "4", "--time-limit", "0.1", "--context", "12", "--calendar", "weekday", "--non-negative"]
    assert titans("fit", tmp_path / "past.csv", "--out", tmp_path / "model", *options).code == 0
    assert len(titans("predict", tmp_path / "model").table()) == 12
    loaded = TitansForecaster.load(tmp_path / "model")
    assert (loaded.calendar, loaded.non_negative) == (("weekday",), True)
    LATER.assign(y=-1.0).to_csv(tmp_path / "later.csv", index=False)
    refused = titans("update", tmp_path / "model", tmp_path / "later.csv")
    assert refused.code == 2
    assert "values are negative" in refused.err


def test_groups_and_ensembles_are_options(titans, tmp_path):
    PAST.assign(shop="here").to_csv(tmp_path / "past.csv", index=False)
    LATER.to_csv(tmp_path / "later.csv", index=False)
    options = ["--horizon", "4", "--time-limit", "0.1", "--context", "12", "--group", "shop", "--ensemble", "2"]
    assert titans("fit", tmp_path / "past.csv", "--out", tmp_path / "model", *options).code == 0
    loaded = TitansForecaster.load(tmp_path / "model")
    assert (loaded.group, loaded.multivariate, loaded.ensemble) == ("shop", False, 2)
    assert titans("update", tmp_path / "model", tmp_path / "later.csv").code == 0  # which needs no such column
    assert len(titans("predict", tmp_path / "model").table()) == 12
    refused = titans("fit", tmp_path / "past.csv", "--out", tmp_path / "other", *options, "--multivariate")
    assert refused.code == 2
    assert "pass one of the two" in refused.err


def test_text_that_looks_like_numbers_in_one_file_is_the_same_category(titans, tmp_path):
    random = np.random.default_rng(0)
    promo = random.choice(["none", "1", "2"], size=120)
    days = pd.date_range("2024-01-01", periods=130, freq="D")
    effect = {"none": 0.0, "1": 5.0, "2": 10.0}
    past = pd.DataFrame({"unique_id": "NA", "ds": days[:120], "promo": promo})
    past["y"] = [effect[kind] + 0.1 * random.normal() for kind in promo]
    past.to_csv(tmp_path / "past.csv", index=False)
    fit = [tmp_path / "past.csv", "--out", tmp_path / "model", "--horizon", 3, "--known", "promo", "--time-limit", 0]
    made = titans("fit", *fit)
    assert made.code == 0, made.err
    ahead = pd.DataFrame({"unique_id": "NA", "ds": days[120:123], "promo": ["2", "2", "1"]})
    ahead.to_csv(tmp_path / "ahead.csv", index=False)  # a column of numbers
    out = titans("predict", tmp_path / "model", "--future", tmp_path / "ahead.csv", "--level", 99.5)
    table = pd.read_csv(io.StringIO(out.out), keep_default_na=False)
    np.testing.assert_allclose(table["TitansForecaster"], [10, 10, 5], atol=1)
    assert set(table["unique_id"]) == {"NA"}
    assert "TitansForecaster-hi-99.5" in table


def test_hours_through_a_change_of_the_clock_are_read_in_utc(titans, tmp_path):
    hours = pd.date_range("2024-03-29", periods=90, freq="h", tz="Europe/Berlin")
    whole = pd.DataFrame({"unique_id": "a", "ds": hours, "y": np.sin(np.arange(90) / 4)})
    for name, part in (("past", whole[:80]), ("later", whole[80:])):  # the second has one offset, the first two
        part.to_csv(tmp_path / f"{name}.csv", index=False)
    made = titans("fit", tmp_path / "past.csv", "--out", tmp_path / "model", "--horizon", 3, "--time-limit", 0)
    assert made.code == 0, made.err
    assert titans("update", tmp_path / "model", tmp_path / "later.csv").code == 0
    table = titans("predict", tmp_path / "model").table()
    assert table["ds"].tolist() == list(pd.date_range(hours[-1], periods=4, freq="h").tz_convert("UTC")[1:])
