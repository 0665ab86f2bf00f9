"""What is measured? One file per evaluator, the attack gate, and the rules that choose a cleaned model."""
