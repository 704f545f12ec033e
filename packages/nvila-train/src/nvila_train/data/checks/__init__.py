"""What is wrong with a data set, named by row and field, and what it looks like."""
