"""How do results get into MLflow? Its server and database, runs, and the saved chart."""
