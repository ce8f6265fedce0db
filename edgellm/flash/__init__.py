"""Weights that are read from flash while a model runs: readers, and what a device can do."""
