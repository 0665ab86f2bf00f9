"""What is a sample, and what is done to it before a trainer sees it? Files here, a room for each further question.

`component.py`: what every hyper-parameter is part of; `storage.py`: files here and elsewhere; `captions.py`, `text.py`: what people write;
`synthetic.py`: the procedural world; `seeding.py`: everything random.
"""
