"""The tables of README and docs, each made from the records that are committed."""
