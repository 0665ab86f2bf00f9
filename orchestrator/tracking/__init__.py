"""What came of it, in MLflow? Its server and database, runs, and the saved chart."""
