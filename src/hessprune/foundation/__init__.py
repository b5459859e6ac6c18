"""What everything else stands on: checks, files, trees of tensors, borrowed models, progress."""
