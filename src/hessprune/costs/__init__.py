"""Costs: multiply-adds, parameters and milliseconds of a model, and the budgets that bound them."""
