"""Defences at test time: one file each, and the ways to attack through them."""
