"""What the system can do, measured: each figure with what it is to be compared with, from the same run."""
