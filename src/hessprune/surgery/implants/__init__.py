"""Implants: low-rank stand-ins for filters are put in place, fitted to data, and verified."""
