"""What is done to the pairs? The poison plan, and poisoned copies of shards."""
