"""Structure: which slices of which parameters must be removed together."""
