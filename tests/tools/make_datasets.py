"""Writes the files of `datasets/`, byte for byte, from the public-domain sets that statsmodels ships.

    python tests/tools/make_datasets.py [folder]

Values are written with `repr`, the shortest text that reads back as the same float, so that the bytes do not depend on
the version of pandas.
"""

import sys
from collections.abc import Iterable, Iterator
from datetime import date
from pathlib import Path

import pandas as pd
import statsmodels.api as sm

Row = tuple[str, date, float]
MACRO_SERIES = ("realgdp", "realcons", "realinv", "cpi", "tbilrate", "unemp")


def co2() -> Iterator[Row]:
    frame = sm.datasets.co2.load_pandas().data
    for stamp, value in frame["co2"].items():
        yield "co2", stamp.date(), value


def elnino() -> Iterator[Row]:
    frame = sm.datasets.elnino.load_pandas().data.set_index("YEAR")
    for year, months in frame.iterrows():
        for month, value in enumerate(months, start=1):
            yield "elnino", date(int(year), month, 1), value


def sunspots() -> Iterator[Row]:
    frame = sm.datasets.sunspots.load_pandas().data
    for year, value in zip(frame["YEAR"], frame["SUNACTIVITY"], strict=True):
        yield "sunspots", date(int(year), 1, 1), value


def nile() -> Iterator[Row]:
    frame = sm.datasets.nile.load_pandas().data
    for year, value in zip(frame["year"], frame["volume"], strict=True):
        yield "nile", date(int(year), 1, 1), value


def macrodata() -> Iterator[Row]:
    frame = sm.datasets.macrodata.load_pandas().data
    for name in MACRO_SERIES:
        for year, quarter, value in zip(frame["year"], frame["quarter"], frame[name], strict=True):
            yield name, date(int(year), 3 * int(quarter) - 2, 1), value


def to_csv(rows: Iterable[Row]) -> bytes:
    lines = ["unique_id,ds,y"]
    lines += [
        f"{name},{stamp.isoformat()},{'' if pd.isna(value) else repr(float(value))}" for name, stamp, value in rows
    ]
    return ("\n".join(lines) + "\n").encode()


def build() -> dict[str, bytes]:
    sources = (co2, elnino, macrodata, nile, sunspots)
    return {f"{source.__name__}.csv": to_csv(source()) for source in sources}


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2] / "datasets"
    for name, content in build().items():
        (folder / name).write_bytes(content)
        print(f"{folder / name}: {len(content)} bytes")
