"""What does one process do with batches? The model, the train loop and checkpoints; subpackages for losses, methods, evaluators, detection
scores and reading weights."""
