"""How is a model trained or cleaned? One file per method."""
