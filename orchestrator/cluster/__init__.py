"""How is Ray used? Starting it, asking it, streaming data over it, and what a run waits for."""
