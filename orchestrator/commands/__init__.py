"""What can be asked for on the command line? One file a command, where it is more than a call."""
