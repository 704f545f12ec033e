"""Samples through both models: read once, what they share computed once, many at a time."""
