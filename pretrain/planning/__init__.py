"""The cost of a training, counted before it is paid."""
