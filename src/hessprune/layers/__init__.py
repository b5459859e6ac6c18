"""Layers of a running model: recordings, folding, branches, per-sample gradients and least squares."""
