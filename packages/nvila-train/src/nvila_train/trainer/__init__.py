"""The training loop and what carries it: steps, processes, devices, number formats, states, the log."""
