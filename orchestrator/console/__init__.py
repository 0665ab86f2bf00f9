"""What does a run say, and where? The logger and the files of its log, how far something is, the live view of a terminal."""
