"""Compiled functions are kept where they can be, and work where they cannot."""

import os
import subprocess
import sys


def test_a_forecaster_fits_where_nothing_can_be_written(tmp_path):
    """numba looks for a place beside the package, then in the user's cache: neither can be found here."""
    code = (
        "import numba.core.caching as c; c.CacheImpl._locator_classes = [];"
        "import numpy as np; from titans_ts import TitansForecaster, TrainConfig;"
        "f = TitansForecaster(horizon=2, train=TrainConfig(steps=0)).fit(np.sin(np.arange(60.0)));"
        "assert np.isfinite(f.predict()).all()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
