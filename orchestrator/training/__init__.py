"""What does a process of a stage do? Its job, its inputs, training, measuring; Ray Train around it."""
