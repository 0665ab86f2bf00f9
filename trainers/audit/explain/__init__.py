"""Explanations of a prediction: one file each."""
