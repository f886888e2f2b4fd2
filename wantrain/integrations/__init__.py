"""Callbacks that let the training loops of other libraries take part in a run."""
