"""Reported accuracies: the table, the runner, the comparison."""
