"""Implants: low-rank stand-ins for filters, put in place, fitted, and proved equal to what they stand for."""
