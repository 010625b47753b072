"""Finds a data set by name, checks that its bytes are the known ones, and reads them into a long frame.

What is known of each set stands in `manifest.toml`. The bytes are looked for in the folder of the call, in
`$TITANS_TS_DATA`, among the sets that come with the package and in the user's cache; only then are they downloaded,
and only then is anything written.
"""

import gzip
import hashlib
import io
import logging
import os
import tempfile
import tomllib
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pooch

ENVIRONMENT_VARIABLE = "TITANS_TS_DATA"


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """What is known of a data set before a byte of it is read.

    >>> describe("elnino").season_length
    12
    """

    name: str
    title: str
    file: str
    sha256: str
    layout: Literal["long", "wide", "tsf", "columns", "keys"]
    freq: str
    season_length: int
    series: int
    rows: int
    licence: str
    source: str
    subfolder: str | None = None
    time_column: str = "ds"
    url: str | None = None
    note: str | None = None
    horizon: int | None = None
    start: str | None = None
    covariates: tuple[str, ...] = ()
    rename: Mapping[str, str] = field(default_factory=dict)
    keys: Sequence[str] = ()
    value_column: str = "y"


def names() -> list[str]:
    """The names that `load` knows, in alphabetical order.

    >>> names()[:4]
    ['aus_tourism', 'car_parts', 'co2', 'elnino']
    """
    return sorted(_cards())


def describe(name: str) -> Card:
    """The card of a data set: title, frequency, shape, licence, source, hash.

    >>> card = describe("co2")
    >>> card.freq, card.series, card.rows, card.licence
    ('W-SAT', 1, 2284, 'public domain')
    """
    cards = _cards()
    if name not in cards:
        raise ValueError(f"there is no data set {name!r}; known are {', '.join(sorted(cards))}")
    return cards[name]


def load(name: str, folder: str | os.PathLike[str] | None = None) -> pd.DataFrame:
    """The data set as a long frame: `unique_id`, `ds` (time stamps), `y` (float, NaN where missing), and the columns
    of its card's `covariates`.

    Series come in the order of the file, and each in the order of time. The file is taken from the first of: `folder`,
    `$TITANS_TS_DATA`, the sets that come with the package, the user's cache, a download into that cache. Its sha256 is
    checked wherever it was found.

    >>> load("sunspots").head(2)
      unique_id         ds     y
    0  sunspots 1700-01-01   5.0
    1  sunspots 1701-01-01  11.0
    """
    card = describe(name)
    path = _find(card, _folders(folder)) or _download(card, folder)
    content = _checked(card, path)
    readers = {
        "long": _read_long,
        "wide": _read_wide,
        "tsf": _read_tsf,
        "columns": _read_columns,
        "keys": _read_keys,
    }
    return readers[card.layout](content, card)


@cache
def _cards() -> dict[str, Card]:
    entries = tomllib.loads(Path(__file__).with_name("manifest.toml").read_text(encoding="utf-8"))
    return {
        name: Card(name=name, **{**entry, "covariates": tuple(entry.get("covariates", ()))})
        for name, entry in entries.items()
    }


def _shipped() -> Path:
    """An installed wheel keeps the sets beside this file; a checkout, in `datasets/` at its top."""
    installed = Path(__file__).with_name("_datasets")
    return installed if installed.is_dir() else Path(__file__).parents[2] / "datasets"


def _user_cache() -> Path:
    return Path(pooch.os_cache("titans_ts"))


def _folders(folder: str | os.PathLike[str] | None) -> list[Path]:
    asked = [folder, os.environ.get(ENVIRONMENT_VARIABLE)]
    return [Path(place).expanduser() for place in asked if place] + [_shipped(), _user_cache()]


def _find(card: Card, folders: list[Path]) -> Path | None:
    for folder in folders:
        for place in (folder, folder / card.subfolder) if card.subfolder else (folder,):
            for path in (place / card.file, place / f"{card.file}.gz"):
                if path.is_file():
                    return path
    return None


def _checked(card: Card, path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is not a whole gzip file ({error}): delete it, or replace it.") from error
    content = _with_plain_ends(card, content)
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != card.sha256:
        raise ValueError(
            f"{path} is not the data set {card.name!r}: the sha256 of its uncompressed bytes is {sha256}, "
            f"and {card.sha256} was expected. Delete it, or put the right file there."
        )
    return content


def _with_plain_ends(card: Card, content: bytes) -> bytes:
    """Copies of the Monash archive differ in their line ends."""
    return content.replace(b"\r\n", b"\n") if card.layout == "tsf" else content


def _download(card: Card, folder: str | os.PathLike[str] | None) -> Path:
    """Downloads, unpacks and checks in a folder of its own, so that the cache gets whole and right files only."""
    if card.url is None:
        raise FileNotFoundError(_missing(card, folder, "no stable public address is known to download it from"))
    target = _user_cache() / card.file
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="download-", dir=target.parent) as scratch:
            path = _retrieve(card, card.url, scratch)
            sha256 = hashlib.sha256(_with_plain_ends(card, path.read_bytes())).hexdigest()
            if sha256 != card.sha256:
                raise ValueError(_missing(card, folder, f"what {card.url} sends has another sha256: {sha256}"))
            return path.replace(target)
    except (zipfile.BadZipFile, gzip.BadGzipFile, EOFError, zlib.error, RuntimeError) as error:  # or encrypted
        why = f"what {card.url} sends is not a whole archive with {card.file} in it ({error})"
        raise ValueError(_missing(card, folder, why)) from error
    except OSError as error:  # of the network (requests raises these too) or of the disk
        raise FileNotFoundError(_missing(card, folder, f"downloading {card.url} failed ({error})")) from error


def _retrieve(card: Card, url: str, folder: str) -> Path:
    """Downloads and unpacks into `folder`. pooch is told no hash: that of an archive is not known, only the file's."""
    unpack: pooch.Unzip | pooch.Decompress | None = None
    if url.endswith(".zip"):
        unpack = pooch.Unzip(members=[card.file], extract_dir=".")
    elif url.endswith(".gz"):
        unpack = pooch.Decompress(method="gzip", name=card.file)
    path = Path(folder) / card.file
    with _quiet(pooch.get_logger()):
        came = f"{card.file}.packed" if unpack else card.file
        pooch.retrieve(url, known_hash=None, fname=came, path=folder, processor=unpack)
    if not path.is_file():
        raise zipfile.BadZipFile(f"{card.file} is not in it")
    return path


def _missing(card: Card, folder: str | os.PathLike[str] | None, why: str) -> str:
    places = "\n".join(f"  {place}" for place in _folders(folder))
    below = f", or in a subfolder {card.subfolder!r} of one of them" if card.subfolder else ""
    return (
        f"data set {card.name!r} is not on this machine, and {why}. Put {card.file} or {card.file}.gz "
        f"(sha256 of the uncompressed bytes: {card.sha256}) in one of these folders{below}:\n{places}\n"
        f"or name another with load({card.name!r}, folder=...) or ${ENVIRONMENT_VARIABLE}."
    )


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """The library prints nothing unless asked; pooch announces every download on stderr."""
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _read_long(content: bytes, card: Card) -> pd.DataFrame:
    frame = pd.read_csv(io.BytesIO(content), dtype={"unique_id": "str", "y": "float64"}, parse_dates=["ds"])
    return frame[["unique_id", "ds", "y", *card.covariates]]


def _read_wide(content: bytes, card: Card) -> pd.DataFrame:
    wide = pd.read_csv(io.BytesIO(content), parse_dates=[card.time_column]).rename(columns=dict(card.rename))
    long = wide.melt(id_vars=card.time_column, var_name="unique_id", value_name="y")
    long = long.rename(columns={card.time_column: "ds"}).astype({"y": "float64"})
    return long[["unique_id", "ds", "y"]]


def _read_tsf(content: bytes, card: Card) -> pd.DataFrame:
    """The format of the Monash archive: a header, then a line `name:start:value,value,...` for each series. A start
    inside a year, quarter or month stands for that whole period."""
    months = {"YS": 12, "QS": 3, "MS": 1}.get(card.freq)
    names, times, values = [], [], []
    for line in content.decode("latin-1").partition("@data")[2].split("\n"):
        if not line.strip():
            continue
        name, start, *_, numbers = line.strip().split(":")
        y = np.array(numbers.replace("?", "nan").split(","), dtype=np.float64)
        step = np.arange(len(y))
        if months is None:
            first = np.datetime64(pd.Timestamp(f"{start[:10]} {start[11:].replace('-', ':')}"), "s")
            ds = first + step * np.timedelta64(pd.Timedelta(1, card.freq)).astype("timedelta64[s]")
        else:
            month = np.datetime64(start[:7], "M").astype(np.int64)
            ds = (month - month % months + months * step).astype("datetime64[M]").astype("datetime64[s]")
        names.append(name)
        times.append(ds)
        values.append(y)
    ids = np.repeat(np.array(names, dtype=object), [len(y) for y in values])
    return pd.DataFrame({"unique_id": ids, "ds": np.concatenate(times), "y": np.concatenate(values)})


def _read_columns(content: bytes, card: Card) -> pd.DataFrame:
    """A column for each series, without time stamps: the first row is that of `card.start`."""
    wide = pd.read_csv(io.BytesIO(content)).astype("float64")
    wide.index = pd.date_range(card.start, periods=len(wide), freq=card.freq, name="ds")
    long = wide.melt(var_name="unique_id", value_name="y", ignore_index=False).reset_index()
    return long[["unique_id", "ds", "y"]]


def _read_keys(content: bytes, card: Card) -> pd.DataFrame:
    """Long, but a series is named by several columns: their values with "/" between them."""
    frame = pd.read_csv(io.BytesIO(content), parse_dates=[card.time_column], dtype=dict.fromkeys(card.keys, "str"))
    first, *others = (frame[key] for key in card.keys)
    ids = first.str.cat(others, sep="/")
    return pd.DataFrame(
        {"unique_id": ids, "ds": frame[card.time_column], "y": frame[card.value_column].astype("float64")}
    )
