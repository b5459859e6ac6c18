"""Surgery: make the smaller model, and prove that it computes what the masked model computes."""
