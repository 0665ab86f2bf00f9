"""What is in the shards? Readers of tars, Parquet and tables, the index of all pairs, and the writer of shards."""
