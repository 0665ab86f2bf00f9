"""How do pairs reach a trainer? Batches, decoded pictures kept on a machine, a sample of pairs to look at."""
