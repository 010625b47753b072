"""Fit once, then let every new observation in: a weekly series, forecast and updated through its last years.

Run it: python examples/stream.py
"""

import copy

import pandas as pd

from titans_ts import TitansForecaster, TrainConfig
from titans_ts.data import load

y = load("co2")
past, later = y[:-104], y[-104:]

forecaster = TitansForecaster(horizon=13, season_length=52, train=TrainConfig(steps=60), random_state=0).fit(past)
frozen = copy.deepcopy(forecaster).set_params(adapt=False)  # the same weights, but its memory stands still

errors = []
for start in range(0, len(later) - 13 + 1, 4):
    truth = later[start : start + 13].set_index("ds")["y"]
    row = {}
    for name, model in (("updating", forecaster), ("frozen", frozen)):
        said = model.predict().set_index("ds")["TitansForecaster"]
        row[name] = (said - truth).abs().mean()
        model.update(later[start : start + 4])
    errors.append(row)

print(pd.DataFrame(errors).mean().round(3).to_string())
