"""Planning: the units that go, so that a model meets a budget."""
