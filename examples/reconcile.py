"""Forecasts that add up: Australian trips by state, region and purpose, every node forecast and then reconciled.

Run it: python examples/reconcile.py (for some seconds; the data set is not shipped, the error says where to put it)

Each node of the hierarchy, from the total down to a purpose in a region, is forecast by itself; such forecasts do not
add up. `bottom_up` keeps the lowest level and adds it up. `min_trace` changes all of them as little as possible where
"little" is counted by how well each node is usually forecast (Wickramasuriya, Athanasopoulos and Hyndman 2019, "Optimal
forecast reconciliation for hierarchical and grouped time series through trace minimization"), the covariance of the
errors shrunk towards its diagonal (Schaefer and Strimmer 2005). One `backtest` gives everything: the errors one step
ahead up to the first tested origin make the covariance, the forecasts from there on are judged.

n nodes, m series of the lowest level, R errors, T steps.
"""

import sys

import numpy as np
import pandas as pd
from utilsforecast.losses import mase

from titans_ts import TitansForecaster, TrainConfig
from titans_ts.data import load

# a node's name is state/region/purpose, with * for all of them; a level says which of the three are named
LEVELS = {
    "total": (False, False, False),
    "purpose": (False, False, True),
    "state": (True, False, False),
    "state, purpose": (True, False, True),
    "region": (True, True, False),
    "region, purpose": (True, True, True),
}
TESTED = 5  # the last origins, one quarter apart
LEARNT = 28  # origins before them, whose errors one step ahead make the covariance; then all is fitted again


def summing(bottom):
    """S [n, m]: which series of the lowest level (columns) add up to which node (rows); and the level of each node."""
    parts, levels, rows = [name.split("/") for name in bottom], {}, {}
    for level, named in LEVELS.items():
        for column, part in enumerate(parts):
            node = "/".join(word if kept else "*" for word, kept in zip(part, named, strict=True))
            levels[node] = level
            rows.setdefault(node, np.zeros(len(parts)))[column] = 1.0
    return pd.DataFrame(rows, index=bottom).T, pd.Series(levels)


def add_up(y, sums):
    """The long frame of all nodes from that of the lowest level."""
    wide = y.pivot(index="ds", columns="unique_id", values="y")[sums.columns] @ sums.T
    return wide.rename_axis(columns="unique_id").melt(ignore_index=False, value_name="y").reset_index()


def shrunk_covariance(errors):
    """The covariance [n, n] of errors [R, n], correlations drawn to 0 by as much as their own noise demands."""
    deviation = np.maximum(np.sqrt((errors**2).mean(axis=0)), 1e-9)
    x = errors / deviation
    correlation = x.T @ x / len(x)
    noise = ((x**2).T @ x**2 / len(x) - correlation**2) / (len(x) - 1)  # the variance of each correlation
    apart = ~np.eye(len(correlation), dtype=bool)
    share = min(1.0, noise[apart].sum() / (correlation[apart] ** 2).sum())
    return np.where(apart, (1 - share) * correlation, 1.0) * np.outer(deviation, deviation)


def bottom_up(forecasts, sums):
    """Forecasts [T, n] that keep those of the lowest level."""
    return forecasts[:, [sums.index.get_loc(name) for name in sums.columns]] @ sums.to_numpy().T


def min_trace(forecasts, sums, covariance):
    """Forecasts [T, n] that add up, the nearest in the metric of the errors: S (S' W^-1 S)^-1 S' W^-1."""
    S = sums.to_numpy()
    weighed = np.linalg.solve(covariance, S)  # W^-1 S [n, m]
    return forecasts @ weighed @ np.linalg.solve(weighed.T @ S, S.T)


def reconcile(y, forecaster, *, season_length, tested=TESTED, learnt=LEARNT):
    """The table of mean MASE by level, before and after, of the last `tested` origins of the long frame `y`."""
    name = type(forecaster).__name__
    sums, level = summing(sorted(y["unique_id"].unique()))
    nodes = add_up(y, sums)
    said = pd.concat(  # a forecaster for each level: what is smooth above is noise below
        forecaster.backtest(nodes[nodes["unique_id"].map(level) == one], learnt + tested, step_size=1, refit=learnt)
        for one in LEVELS
    )
    first = said["cutoff"].unique()[-tested]

    def table(rows, column):  # [T, n]
        return rows.pivot(index=["cutoff", "ds"], columns="unique_id", values=column)[sums.index]

    ahead = said.groupby(["unique_id", "cutoff"])["ds"].rank()
    known = said[(ahead == 1) & (said["ds"] <= first)]  # what had come when the first tested forecast was made
    covariance = shrunk_covariance((table(known, "y") - table(known, name)).to_numpy())
    judged = said[said["cutoff"] >= first]
    base = table(judged, name)
    ways = {
        "base": base.to_numpy(),
        "bottom-up": bottom_up(base.to_numpy(), sums),
        "MinT": min_trace(base.to_numpy(), sums, covariance),
    }
    for way, values in ways.items():
        column = pd.DataFrame(values, index=base.index, columns=base.columns).melt(ignore_index=False, value_name=way)
        judged = judged.merge(column.reset_index(), on=["unique_id", "cutoff", "ds"])
    past = nodes[nodes["ds"] <= first].sort_values(["unique_id", "ds"])
    errors = mase(judged, list(ways), season_length, past).groupby("unique_id")[list(ways)].mean()
    result = errors.groupby(level[errors.index].to_numpy()).mean().loc[list(LEVELS)]
    result.insert(0, "nodes", level.value_counts())
    result.loc["all nodes"] = [len(level), *errors.mean()]
    return result.astype({"nodes": int})


if __name__ == "__main__":
    try:
        trips = load("aus_tourism")
    except FileNotFoundError as error:
        sys.exit(str(error))
    # few rows: before the tested ones, training the backbone too takes minutes, and MinT gains nothing (RESULTS.md)
    titans = TitansForecaster(horizon=8, train=TrainConfig(steps=0), random_state=0)
    print(reconcile(trips, titans, season_length=4).round(3).to_string())
