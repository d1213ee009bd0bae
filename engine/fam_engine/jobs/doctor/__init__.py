"""What this machine can do with the package as it is installed, found out by asking it."""
