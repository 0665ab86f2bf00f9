"""What is minimised? One file a loss."""
