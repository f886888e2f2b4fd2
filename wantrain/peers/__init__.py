"""Who takes part and what is committed: pure cores for membership, rounds and catch-up, and their thin shells."""
