"""What is minimised? One file per loss."""
