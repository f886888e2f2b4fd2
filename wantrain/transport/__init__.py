"""Bytes between peers: framing, links, codecs and the collectives; knows nothing of peers or optimizers."""
