"""Structure: the slices of parameters that must be removed together."""
