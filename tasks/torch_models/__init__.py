"""Shelf: models being trained. The one training loop, its losses, pruning plans, stored torch variants."""
