"""How are weights read? Checkpoint files of ours and of other programs, read as data and compared with the model."""
