"""The registry: where a data set is looked for, what is checked, and what is said when it cannot be had."""

import dataclasses
import doctest
import functools
import gzip
import hashlib
import http.server
import io
import logging
import os
import shutil
import subprocess
import sys
import threading
import tomllib
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import pytest

from titans_ts import data
from titans_ts.data import registry

ROOT = Path(__file__).parents[2]
CONTENT = b"date,a,b\n2020-01-01 00:00:00,1.5,10\n2020-01-01 01:00:00,2.5,\n"
TOY = registry.Card(
    name="toy",
    title="two series of two hours",
    file="toy.csv",
    subfolder="toys",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    layout="wide",
    time_column="date",
    freq="h",
    season_length=24,
    series=2,
    rows=4,
    licence="none",
    source="this test",
)


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A folder for every place of the search; nothing of the machine's own data or cache is seen."""
    folders = {name: tmp_path / name for name in ("argument", "environment", "shipped", "cache")}
    for name in ("argument", "environment", "shipped"):
        folders[name].mkdir()
    monkeypatch.setenv(registry.ENVIRONMENT_VARIABLE, str(folders["environment"]))
    monkeypatch.setattr(registry, "_shipped", lambda: folders["shipped"])
    monkeypatch.setattr(registry, "_user_cache", lambda: folders["cache"])
    return folders


@pytest.fixture
def know(monkeypatch):
    """Makes the registry know one card only."""

    def know(card: registry.Card) -> None:
        monkeypatch.setattr(registry, "_cards", lambda: {card.name: card})

    know(TOY)
    return know


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server of this process; yields its address and the folder that it serves."""
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=folder)) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", folder
        running.shutdown()


def everything_below(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


# ---- reading


@pytest.mark.parametrize("name", ["co2", "elnino", "macrodata", "nile", "sunspots"])
def test_a_shipped_set_is_what_its_card_says(name, monkeypatch):
    monkeypatch.delenv(registry.ENVIRONMENT_VARIABLE, raising=False)
    frame, card = data.load(name), data.describe(name)
    assert list(frame.columns) == ["unique_id", "ds", "y"]
    assert frame["y"].dtype == np.float64
    assert pd.api.types.is_datetime64_any_dtype(frame["ds"])
    assert (len(frame), frame["unique_id"].nunique()) == (card.rows, card.series)
    for _, series in frame.groupby("unique_id"):
        expected = pd.date_range(series["ds"].iloc[0], periods=len(series), freq=card.freq)
        assert (series["ds"].to_numpy() == expected.to_numpy()).all()


@pytest.mark.skipif(registry.ENVIRONMENT_VARIABLE not in os.environ, reason="no folder of larger sets is named")
@pytest.mark.parametrize("name", ["etth1", "etth2", "ettm1", "ettm2", "weather"])
def test_a_larger_set_is_what_its_card_says(name):
    card = data.describe(name)
    if registry._find(card, registry._folders(None)) is None:
        pytest.skip(f"{card.file} is not in the named folder")
    frame = data.load(name)
    assert (len(frame), frame["unique_id"].nunique()) == (card.rows, card.series)
    assert not frame.isna().any(axis=None)
    assert not frame["unique_id"].str.contains("\ufffd").any()
    steps = frame.groupby("unique_id")["ds"].diff().dropna()
    assert steps.mode().tolist() == [pd.Timedelta(pd.tseries.frequencies.to_offset(card.freq))]


@pytest.mark.skipif(registry.ENVIRONMENT_VARIABLE not in os.environ, reason="no folder of larger sets is named")
def test_the_australian_trips_are_a_whole_hierarchy():
    card = data.describe("aus_tourism")
    if registry._find(card, registry._folders(None)) is None:
        pytest.skip(f"{card.file} is not in the named folder")
    frame = data.load("aus_tourism")
    assert (len(frame), frame["unique_id"].nunique()) == (card.rows, card.series)
    assert not frame.isna().any(axis=None)
    names = frame["unique_id"].str.split("/", expand=True)
    assert names.nunique().tolist() == [8, 76, 4]
    quarters = pd.date_range("1998-01-01", "2017-10-01", freq=card.freq)
    assert frame.groupby("unique_id")["ds"].agg(list).map(lambda own: own == quarters.tolist()).all()


@pytest.mark.skipif(registry.ENVIRONMENT_VARIABLE not in os.environ, reason="no folder of larger sets is named")
def test_the_prices_bring_their_covariates():
    card = data.describe("power_prices")
    if registry._find(card, registry._folders(None)) is None:
        pytest.skip(f"{card.file} is not in the named folder")
    frame = data.load("power_prices")
    assert list(frame.columns) == ["unique_id", "ds", "y", *card.covariates]
    assert (len(frame), frame["unique_id"].unique().tolist()) == (card.rows, ["BE", "DE", "FR", "NP"])
    assert not frame.isna().any(axis=None)


def test_a_long_file_keeps_the_covariates_of_its_card_only(places, know):
    content = b"unique_id,ds,y,load,note\na,2020-01-01,1.5,7,x\n"
    card = dataclasses.replace(TOY, layout="long", sha256=hashlib.sha256(content).hexdigest(), covariates=("load",))
    know(card)
    (places["shipped"] / "toy.csv").write_bytes(content)
    assert data.load("toy").columns.tolist() == ["unique_id", "ds", "y", "load"]
    know(dataclasses.replace(card, covariates=()))
    assert data.load("toy").columns.tolist() == ["unique_id", "ds", "y"]


def test_a_wide_file_becomes_a_long_frame_series_by_series(places, know):
    (places["shipped"] / "toy.csv").write_bytes(CONTENT)
    frame = data.load("toy")
    stamps = pd.to_datetime(["2020-01-01 00:00", "2020-01-01 01:00"])
    assert frame["unique_id"].tolist() == ["a", "a", "b", "b"]
    assert frame["ds"].tolist() == [*stamps, *stamps]
    np.testing.assert_array_equal(frame["y"], [1.5, 2.5, 10.0, np.nan])


def test_a_broken_header_is_repaired_by_the_card(places, know):
    know(dataclasses.replace(TOY, rename={"b": "b (m²)"}))
    (places["shipped"] / "toy.csv").write_bytes(CONTENT)
    assert data.load("toy")["unique_id"].unique().tolist() == ["a", "b (m²)"]


TSF = b"""# a comment
@relation toy
@attribute series_name string
@attribute start_timestamp date
@frequency quarterly
@data
A:1990-05-31 00-00-00:1,2.5,?
B:1700-01-01 00-00-00:4
"""


@pytest.mark.parametrize("ends", [b"\n", b"\r\n"])
def test_a_file_of_the_monash_archive_becomes_a_long_frame(places, know, ends):
    card = {"layout": "tsf", "file": "toy.tsf", "freq": "QS", "sha256": hashlib.sha256(TSF).hexdigest()}
    know(dataclasses.replace(TOY, **card))
    (places["shipped"] / "toy.tsf").write_bytes(TSF.replace(b"\n", ends))
    frame = data.load("toy")
    assert frame["unique_id"].tolist() == ["A", "A", "A", "B"]
    assert frame["ds"].astype(str).tolist() == ["1990-04-01", "1990-07-01", "1990-10-01", "1700-01-01"]
    np.testing.assert_array_equal(frame["y"], [1, 2.5, np.nan, 4])


def test_hours_of_the_monash_archive_keep_their_clock(places, know):
    content = b"@data\nA:2015-07-01 12-00-00:1,2\n"
    card = {"layout": "tsf", "file": "toy.tsf", "freq": "h", "sha256": hashlib.sha256(content).hexdigest()}
    know(dataclasses.replace(TOY, **card))
    (places["shipped"] / "toy.tsf").write_bytes(content)
    assert data.load("toy")["ds"].tolist() == [pd.Timestamp("2015-07-01 12:00"), pd.Timestamp("2015-07-01 13:00")]


def test_columns_without_time_stamps_begin_where_the_card_says(places, know):
    content = b"a,b\n1,\n2,5\n"
    card = {"layout": "columns", "start": "1998-01-01", "freq": "MS", "sha256": hashlib.sha256(content).hexdigest()}
    know(dataclasses.replace(TOY, **card))
    (places["shipped"] / TOY.file).write_bytes(content)
    frame = data.load("toy")
    assert frame["ds"].dt.month.tolist() == [1, 2, 1, 2]
    np.testing.assert_array_equal(frame["y"], [1, 2, np.nan, 5])


def test_a_series_named_by_several_columns_has_them_joined(places, know):
    content = b"quarter,state,kind,trips\n1998-01,ACT,Other,1.5\n1998-04,ACT,Other,2\n1998-01,NSW,Other,3\n"
    card = {"layout": "keys", "keys": ["state", "kind"], "time_column": "quarter", "value_column": "trips"}
    know(dataclasses.replace(TOY, freq="QS", sha256=hashlib.sha256(content).hexdigest(), **card))
    (places["shipped"] / TOY.file).write_bytes(content)
    frame = data.load("toy")
    assert list(frame) == ["unique_id", "ds", "y"]
    assert frame["unique_id"].tolist() == ["ACT/Other", "ACT/Other", "NSW/Other"]
    assert frame["ds"].tolist() == [pd.Timestamp("1998-01-01"), pd.Timestamp("1998-04-01"), pd.Timestamp("1998-01-01")]
    np.testing.assert_array_equal(frame["y"], [1.5, 2, 3])


# ---- cards


def test_names_are_sorted_and_every_one_has_a_card():
    assert data.names() == sorted(data.names())
    for name in data.names():
        card = data.describe(name)
        assert card.name == name
        assert len(bytes.fromhex(card.sha256)) == 32
        assert card.layout in ("long", "wide", "tsf", "columns", "keys")
        assert card.title
        assert card.licence
        assert card.source
        assert pd.tseries.frequencies.to_offset(card.freq) is not None


@pytest.mark.parametrize("look_up", [data.load, data.describe])
def test_an_unknown_name_is_answered_with_the_known_ones(look_up):
    with pytest.raises(ValueError, match=r"no data set 'ett'; known are aus_tourism, car_parts, co2, elnino"):
        look_up("ett")


def test_examples_in_the_docstrings_run(monkeypatch):
    monkeypatch.delenv(registry.ENVIRONMENT_VARIABLE, raising=False)
    assert doctest.testmod(data) == (0, 2)
    assert doctest.testmod(registry) == (0, 5)


# ---- where a set is looked for


@pytest.mark.parametrize("file", ["toy.csv", "toy.csv.gz", "toys/toy.csv", "toys/toy.csv.gz"])
@pytest.mark.parametrize("place", ["argument", "environment", "shipped", "cache"])
def test_a_set_is_found_plain_or_compressed_in_every_place_or_its_subfolder(place, file, places, know):
    path = places[place] / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(CONTENT) if file.endswith(".gz") else CONTENT)
    assert len(data.load("toy", folder=places["argument"])) == 4


def test_the_search_goes_from_argument_to_environment_to_shipped_to_cache(places, know):
    order = ["argument", "environment", "shipped", "cache"]
    for place in order:
        places[place].mkdir(exist_ok=True)
        (places[place] / "toy.csv").write_bytes(CONTENT)
    found = []
    for place in order:
        path = registry._find(TOY, registry._folders(places["argument"]))
        found.append(path.parent.name)
        (places[place] / "toy.csv").unlink()
    assert found == order


def test_the_folder_may_be_a_string_with_a_tilde(places, know, monkeypatch):
    monkeypatch.setenv("HOME", str(places["argument"].parent))
    monkeypatch.setenv("USERPROFILE", str(places["argument"].parent))
    (places["argument"] / "toy.csv").write_bytes(CONTENT)
    assert len(data.load("toy", folder="~/argument")) == 4


def test_an_empty_environment_variable_is_no_folder(places, know, monkeypatch, tmp_path):
    monkeypatch.setenv(registry.ENVIRONMENT_VARIABLE, "")
    monkeypatch.chdir(places["argument"])
    (places["argument"] / "toy.csv").write_bytes(CONTENT)
    with pytest.raises(FileNotFoundError):
        data.load("toy")


def test_in_a_checkout_the_sets_lie_in_its_top_folder():
    assert registry._shipped() == ROOT / "datasets"


def test_in_an_installed_wheel_the_sets_lie_beside_the_registry(tmp_path):
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    (source, target), *others = wheel["force-include"].items()
    assert not others
    package = tmp_path / "titans_ts"
    shutil.copytree(ROOT / "titans_ts" / "data", package / "data", ignore=shutil.ignore_patterns("__pycache__"))
    (package / "__init__.py").touch()
    shutil.copytree(ROOT / source, tmp_path / target)
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from titans_ts.data import load, registry\n"
        "print(registry.__file__, registry._shipped(), len(load('co2')), sep='\\n')"
    )
    environment = {name: value for name, value in os.environ.items() if name != registry.ENVIRONMENT_VARIABLE}
    printed = subprocess.run(
        [sys.executable, "-I", "-B", "-c", program],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert printed == [str(package / "data" / "registry.py"), str(package / "data" / "_datasets"), "2284"]


# ---- what is checked


@pytest.mark.parametrize("place", ["argument", "environment", "shipped", "cache"])
def test_wrong_bytes_are_refused_wherever_they_lie(place, places, know):
    places[place].mkdir(exist_ok=True)
    path = places[place] / "toy.csv"
    path.write_bytes(CONTENT.replace(b"1.5", b"1.6"))
    with pytest.raises(ValueError, match="is not the data set 'toy'") as caught:
        data.load("toy", folder=places["argument"])
    assert str(path) in str(caught.value)
    assert TOY.sha256 in str(caught.value)
    assert hashlib.sha256(path.read_bytes()).hexdigest() in str(caught.value)


def test_wrong_bytes_are_not_passed_over_for_right_ones_further_on(places, know):
    (places["argument"] / "toy.csv").write_bytes(b"something else")
    (places["shipped"] / "toy.csv").write_bytes(CONTENT)
    with pytest.raises(ValueError, match="Delete it, or put the right file there"):
        data.load("toy", folder=places["argument"])


@pytest.mark.parametrize("content", [CONTENT, gzip.compress(CONTENT)[:-20], b""], ids=["plain", "cut", "empty"])
def test_a_broken_compressed_file_is_named(content, places, know):
    (places["shipped"] / "toy.csv.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"toy\.csv\.gz is not"):
        data.load("toy")


# ---- what is said when a set cannot be had


def test_a_missing_set_without_address_is_answered_with_file_hash_and_folders(places, know):
    with pytest.raises(FileNotFoundError) as caught:
        data.load("toy", folder=places["argument"])
    message = str(caught.value)
    assert "'toy' is not on this machine" in message
    assert "no stable public address" in message
    assert "toy.csv or toy.csv.gz" in message
    assert TOY.sha256 in message
    assert "subfolder 'toys'" in message
    assert registry.ENVIRONMENT_VARIABLE in message
    positions = [message.index(str(places[place])) for place in ("argument", "environment", "shipped", "cache")]
    assert positions == sorted(positions)


def test_looking_for_a_set_writes_nothing(places, know, tmp_path):
    (places["argument"] / "toy.csv").write_bytes(CONTENT)
    before = everything_below(tmp_path)
    data.load("toy", folder=places["argument"])
    with pytest.raises(FileNotFoundError):
        data.load("toy")
    assert everything_below(tmp_path) == before


# ---- downloads


def test_a_download_goes_to_the_cache_once_and_silently(places, know, server, capfd):
    address, folder = server
    know(dataclasses.replace(TOY, url=f"{address}/toy.csv"))
    (folder / "toy.csv").write_bytes(CONTENT)
    first = data.load("toy")
    assert (places["cache"] / "toy.csv").read_bytes() == CONTENT
    (folder / "toy.csv").unlink()  # from now on it can come from the cache only
    pd.testing.assert_frame_equal(data.load("toy"), first)
    assert capfd.readouterr() == ("", "")


def test_a_download_leaves_the_level_of_the_logger_as_it_was(places, know, server):
    import pooch

    address, folder = server
    know(dataclasses.replace(TOY, url=f"{address}/toy.csv"))
    (folder / "toy.csv").write_bytes(CONTENT)
    pooch.get_logger().setLevel(logging.DEBUG)
    try:
        data.load("toy")
        assert pooch.get_logger().level == logging.DEBUG
    finally:
        pooch.get_logger().setLevel(logging.INFO)


def test_a_download_of_wrong_bytes_is_refused_and_not_kept(places, know, server):
    address, folder = server
    know(dataclasses.replace(TOY, url=f"{address}/toy.csv"))
    (folder / "toy.csv").write_bytes(b"<html>moved</html>")
    with pytest.raises(ValueError, match="sends has another sha256") as caught:
        data.load("toy")
    assert TOY.sha256 in str(caught.value)
    assert hashlib.sha256(b"<html>moved</html>").hexdigest() in str(caught.value)
    assert str(places["cache"]) in str(caught.value)
    assert not everything_below(places["cache"])


def zipped(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


TOY_TSF = dataclasses.replace(TOY, layout="tsf", file="toy.tsf", freq="QS", sha256=hashlib.sha256(TSF).hexdigest())
CRLF = TSF.replace(b"\n", b"\r\n")


def test_a_file_of_the_monash_archive_is_taken_out_of_its_zip(places, know, server, capfd):
    address, folder = server
    know(dataclasses.replace(TOY_TSF, url=f"{address}/toy.zip"))
    (folder / "toy.zip").write_bytes(zipped({"readme.txt": b"read me", "toy.tsf": CRLF}))
    first = data.load("toy")
    assert first["unique_id"].tolist() == ["A", "A", "A", "B"]
    assert everything_below(places["cache"]) == {places["cache"] / "toy.tsf"}
    assert (places["cache"] / "toy.tsf").read_bytes() == CRLF
    (folder / "toy.zip").unlink()
    pd.testing.assert_frame_equal(data.load("toy"), first)
    assert capfd.readouterr() == ("", "")


def test_a_compressed_file_is_unpacked(places, know, server, capfd):
    address, folder = server
    know(dataclasses.replace(TOY, url=f"{address}/other.csv.gz"))
    (folder / "other.csv.gz").write_bytes(gzip.compress(CONTENT))
    first = data.load("toy")
    assert everything_below(places["cache"]) == {places["cache"] / "toy.csv"}
    assert (places["cache"] / "toy.csv").read_bytes() == CONTENT
    (folder / "other.csv.gz").unlink()
    pd.testing.assert_frame_equal(data.load("toy"), first)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("ending", "sent"),
    [
        ("zip", zipped({"other.tsf": CRLF})),
        ("zip", zipped({"folder/toy.tsf": CRLF})),
        ("zip", zipped({"toy.tsf.old": CRLF})),
        ("zip", zipped({"toy.tsf": CRLF})[:-30]),
        ("zip", b"<html>moved</html>"),
        ("tsf.gz", b"<html>moved</html>"),
        ("tsf.gz", gzip.compress(CRLF)[:-20]),
        ("tsf.gz", b"\x1f\x8b" + bytes(30)),
    ],
    ids=["other member", "deeper", "longer name", "cut zip", "no zip", "no gzip", "cut gzip", "broken gzip"],
)
def test_an_archive_without_the_file_is_refused_and_not_kept(ending, sent, places, know, server, capfd):
    address, folder = server
    know(dataclasses.replace(TOY_TSF, url=f"{address}/toy.{ending}"))
    (folder / f"toy.{ending}").write_bytes(sent)
    with pytest.raises(ValueError, match=rf"toy\.{ending} sends is not a whole archive with toy\.tsf in it") as caught:
        data.load("toy")
    assert TOY_TSF.sha256 in str(caught.value)
    assert str(places["cache"]) in str(caught.value)
    assert not everything_below(places["cache"])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("ending", ["zip", "tsf.gz"])
def test_an_archive_of_wrong_bytes_is_refused_and_not_kept(ending, places, know, server):
    address, folder = server
    wrong = CRLF.replace(b"2.5", b"2.6")
    know(dataclasses.replace(TOY_TSF, url=f"{address}/toy.{ending}"))
    (folder / f"toy.{ending}").write_bytes(zipped({"toy.tsf": wrong}) if ending == "zip" else gzip.compress(wrong))
    with pytest.raises(ValueError, match="sends has another sha256") as caught:
        data.load("toy")
    assert hashlib.sha256(wrong.replace(b"\r\n", b"\n")).hexdigest() in str(caught.value)
    assert TOY_TSF.sha256 in str(caught.value)
    assert not everything_below(places["cache"])


def test_a_download_that_breaks_off_leaves_nothing(places, know, server, monkeypatch):
    address, folder = server
    know(dataclasses.replace(TOY, url=f"{address}/toy.csv"))
    (folder / "toy.csv").write_bytes(CONTENT)

    def fills_the_disk(self, url, output_file, pooch):
        Path(output_file).write_bytes(CONTENT[:10])
        raise OSError("no space left")

    monkeypatch.setattr("pooch.HTTPDownloader.__call__", fills_the_disk)
    with pytest.raises(FileNotFoundError, match="no space left"):
        data.load("toy")
    assert not everything_below(places["cache"])


def test_an_address_that_has_gone_is_answered_with_file_hash_and_folders(places, know, server):
    address, _ = server
    know(dataclasses.replace(TOY, url=f"{address}/gone.csv"))
    with pytest.raises(FileNotFoundError, match=r"gone\.csv failed \(404") as caught:
        data.load("toy")
    assert TOY.sha256 in str(caught.value)
    assert str(places["environment"]) in str(caught.value)


def test_offline_is_answered_with_file_hash_and_folders(places, know, server):
    address, _ = server
    closed = address.rsplit(":", 1)[0] + ":9"  # the discard port: nobody listens
    know(dataclasses.replace(TOY, url=f"{closed}/toy.csv"))
    with pytest.raises(FileNotFoundError, match="downloading") as caught:
        data.load("toy")
    assert TOY.sha256 in str(caught.value)
    assert str(places["cache"]) in str(caught.value)
    assert not [path for path in places["cache"].rglob("*") if path.is_file()]


SHIPPED = {"co2", "elnino", "macrodata", "nile", "sunspots"}
CARDS = [data.describe(name) for name in data.names()]


def test_every_set_is_shipped_or_has_an_address_or_says_that_none_is_known():
    without = {card.name: card.note for card in CARDS if card.url is None and card.name not in SHIPPED}
    assert set(without) == {"aus_tourism", "car_parts", "wind_farms"}
    assert all("no public address of these bytes is known" in note for note in without.values())


@pytest.mark.parametrize("card", [card for card in CARDS if card.url], ids=lambda card: card.name)
def test_an_address_is_https_and_names_the_file_of_its_card(card):
    url = urlsplit(card.url)
    assert url.scheme == "https"
    assert not url.query
    assert not {"main", "master", "HEAD"} & set(url.path.split("/"))  # what a branch holds changes
    assert Path(url.path).name in (card.file, f"{card.file}.gz", f"{Path(card.file).stem}.zip")
