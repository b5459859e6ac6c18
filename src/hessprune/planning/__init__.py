"""Planning: what a model costs, and which units go so that it meets a budget."""
