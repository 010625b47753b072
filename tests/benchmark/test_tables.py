"""The table of what intervals cover counts what stands in the JSON of the runs."""

import json

from titans_ts.benchmark.tables import render


def covering(*shares):
    return {h: {"coverage-80": share} for h, share in zip(("96", "192"), shares, strict=True)}


def test_intervals_are_counted_that_cover_77_to_83_percent(tmp_path):
    def write(kind, name, **run):
        (tmp_path / kind).mkdir(exist_ok=True)
        (tmp_path / kind / f"{kind}-{name}.json").write_text(json.dumps(run))

    def stream(context, seed, learning, frozen, windows):
        parts = {"learning": covering(*learning), "frozen": covering(*frozen), "scores": covering(*windows)}
        write("ltsf", f"etth1-{context}-Titans-test-{seed}", set="etth1", context=context, **parts)

    stream(96, 0, (0.77, 0.7699), (0.83, 0.8301), (0.5, 0.5))
    stream("free", 0, (0.9, 0.8), (0.9, 0.9), (0.8, 0.8))
    stream("free", 1, (0.72, 0.8), (0.9, 0.9), (0.8, 0.8))  # seeds count by their mean
    write("ltsf", "etth1-free-Titans-test-2", set="etth1", context="free", scores=covering(0.1, 0.1))  # not followed
    write("ltsf", "etth1-free-Ridge-test-0", set="etth1", context="free", scores=covering(0.8, 0.8))
    for name, values, learning, frozen in (("a", 1000, 0.8, 0.7), ("b", 999, 0.8, 0.8), ("c", 10, 0.7, 0.8)):
        both = {"coverage-80": learning, "frozen": {"coverage-80": frozen}}
        write("gift", f"{name}-Titans-test-0", configuration=name, values=values, **both)
    write("panels", "m1_yearly-Titans-0", set="m1_yearly", values=2000, **{"coverage-80": 0.81})
    write("panels", "m1_yearly-Titans-validation-0", set="m1_yearly", values=2000, **{"coverage-80": 0.5})
    rows = [line.split(" | ") for line in render("<!-- table coverage -->\n<!-- end -->", tmp_path).splitlines()[3:-1]]
    assert {row[0].strip("| "): [cell.strip("| ") for cell in row[1:]] for row in rows} == {
        "long horizons, context 96": ["2", "1", "1", "0"],
        "long horizons, context free": ["2", "2", "0", "2"],
        "GIFT-Eval, 1,000 values and more": ["1", "1", "0", ""],
        "GIFT-Eval, fewer values": ["2", "1", "2", ""],
        "panels, 1,000 values and more": ["1", "1", "1", ""],
        "panels, fewer values": ["0", "0", "0", ""],
        "all with 1,000 values and more, long horizons free": ["4", "4", "1", ""],
        "**all, long horizons free**": ["6", "5", "3", ""],
        "all, long horizons with context 96": ["6", "4", "4", ""],
    }
