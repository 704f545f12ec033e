"""nano's own training: what it is drawn from, what it is taught before it sees, and its vocabulary."""
