"""Engines: which steps, in which order. Pure: they choose, they never act."""
