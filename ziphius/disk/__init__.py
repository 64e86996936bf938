"""Files that are whole or absent, and what is said when the disk will not take them. Imports no torch."""
