"""What does one process do with batches? The model, the train loop, checkpoints; a room for what one adds to."""
