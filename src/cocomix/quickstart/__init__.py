"""The whole road in one command: the verbs' functions in a row on a small real text."""
