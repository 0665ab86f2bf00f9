"""The stages, one file for each kind: what it is made from, its identity, and how it is made.

`base` defines a stage and makes the missing ones; `graph` turns an experiment into its stages.
"""
