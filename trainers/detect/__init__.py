"""Which training pairs look poisoned? One file per score. A score is a number for each pair, high if the pair is suspect."""
