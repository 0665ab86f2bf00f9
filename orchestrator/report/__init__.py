"""What came of it, in pictures? The page, its tables and figures, and the table for a paper."""
