"""The stages: one file a kind, each with all there is to know of it (what it is made of, its identity, how it is made).

`base` says what a stage is and makes what is missing; `graph` turns an experiment into its
stages.
"""
