"""Surgery: make the smaller model, and prove that its outputs are those of the masked model."""
