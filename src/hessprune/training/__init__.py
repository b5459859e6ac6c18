"""Fine-tuning: from a pruned model to a good one, resumable to the step."""
