"""One whole run: its settings, its stages, the store of what they leave, and what the report is made of."""
