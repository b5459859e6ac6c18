"""A generator of small random networks, and the check of one draw."""
