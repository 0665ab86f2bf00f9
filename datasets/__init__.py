"""What is a sample, and what is done to it before a trainer sees it? Each subpackage answers one part of the question.

The files here serve all of them. `component.py`: base of every class with hyper-parameters; `storage.py`: local and remote files;
`captions.py`, `text.py`, `words.py`: captions and other text from users; `synthetic.py`: the procedural world; `seeding.py`: all
randomness.
"""
