"""Backbones built on the memory, and the time-series model around them."""
