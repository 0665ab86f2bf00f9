"""What came of it, in numbers? Points, names, choices, cautions, claims, frames, published results."""
