"""Pruning: the whole story, from a dense model to a smaller one."""
