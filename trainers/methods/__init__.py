"""How is a model trained or cleaned? One file a method."""
