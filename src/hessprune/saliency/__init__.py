"""Saliency: the estimated loss increase of removing each unit, one file per method."""
