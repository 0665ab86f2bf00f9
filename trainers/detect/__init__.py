"""Which training pairs look poisoned? One file a score: a number for each pair, high where it is suspect."""
