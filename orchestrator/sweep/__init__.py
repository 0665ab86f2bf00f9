"""Which stages does a sweep have? Loading it, its plan, titles, and reading it back from the store."""
