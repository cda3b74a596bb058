"""The calls of each burst as a history for the checker of linearizability."""
