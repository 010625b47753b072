"""Forecasting panels of time series: data at the door, forecasters behind it."""
