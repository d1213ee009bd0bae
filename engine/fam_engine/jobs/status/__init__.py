"""What the folder of a long job says about it, read from outside: nothing is locked, nothing is written."""
