"""Attacks on a classifier: one file each."""
