"""The forms of data that are scored and pruned: which rows they are, and how some of them are written."""
