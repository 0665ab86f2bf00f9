"""Where do pairs come from? Downloads, and packing of folders and tables into shards."""
