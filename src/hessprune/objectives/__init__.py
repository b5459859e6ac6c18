"""Objectives: what judges a model's outputs, with or without labels, and its curvature in the outputs."""
