"""What is put on a poisoned picture? One file a trigger."""
