"""What are the results, in numbers? Points, names, choices, cautions, claims, frames, published results."""
