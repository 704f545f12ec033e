"""One HTML page to look at before a subset is trusted."""
