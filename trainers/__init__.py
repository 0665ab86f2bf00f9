"""What does one process do with batches? The model, the train loop, checkpoints; rooms for losses, methods, measurements and others'
weights."""
