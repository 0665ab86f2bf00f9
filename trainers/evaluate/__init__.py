"""What is measured? One file an evaluator, the attack gate, and the rules by which a cleaned model is chosen."""
