"""The parts of a round that no method sees: who is here, the mail, tests, checkpoints."""
