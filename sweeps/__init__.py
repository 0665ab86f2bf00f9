"""What is tried? One file a study: an experiment, its search space, and what is drawn of it."""
