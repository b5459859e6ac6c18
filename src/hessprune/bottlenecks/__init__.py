"""Layers that are too narrow: found by what a pruning leaves alone and by what more units would bring."""
