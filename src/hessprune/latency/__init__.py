"""Latency tables: layers timed one by one in the runtime that will run them, and checked on whole models."""

from hessprune.costs.target import LatencyTarget
from hessprune.latency.table import latency_table

__all__ = ["LatencyTarget", "latency_table"]
