"""Latency tables: layers timed one by one in the runtime that will run them, and checked on whole models."""

from hessprune.timing.table import latency_table
from hessprune.timing.target import LatencyTarget

__all__ = ["LatencyTarget", "latency_table"]
