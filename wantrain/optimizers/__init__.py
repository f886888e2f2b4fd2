"""What to exchange and what to do with it: streams, merge rules and methods, as pure functions on tensors."""
