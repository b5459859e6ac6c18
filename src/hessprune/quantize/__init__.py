"""INT8: training with rounding, calibration, and graphs that runtimes execute in integers."""
