"""Biases of data sets and of answers: one file each."""
