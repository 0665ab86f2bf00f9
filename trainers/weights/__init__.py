"""How are weights read? Checkpoint files of this project and of other programs are read as data and compared with the model."""
