"""Data sets by name, as long frames of `unique_id`, `ds` and `y`; seeded synthetic ones in `titans_ts.data.synthetic`.

>>> from titans_ts.data import load
>>> load("nile").shape
(100, 3)
"""

from titans_ts.data.registry import Card, describe, load, names

__all__ = ["Card", "describe", "load", "names"]
