"""The audit of a model: how robust it is, what it looks at, which biases its data have, and how pictures are protected against editing."""
