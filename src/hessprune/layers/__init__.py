"""Watch a model run at the level of torch functions: what curvature, folding and compensation build on."""
