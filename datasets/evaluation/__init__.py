"""What is a model judged on? Labelled sets, published ones by name, classes, prompts, sets for retrieval."""
