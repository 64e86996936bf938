"""Files that are whole or absent, what is said when the disk will not take them, and the memory that is free.

Imports no torch.
"""
