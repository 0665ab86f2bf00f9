"""What is asked for? The fields of an experiment, their checks and overrides, and what identifies a result."""
