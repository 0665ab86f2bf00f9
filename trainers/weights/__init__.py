"""Whose weights are these? Files of ours and of other programs, read as data and compared with the model."""
