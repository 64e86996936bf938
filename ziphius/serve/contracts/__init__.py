"""What clients and the service say to each other: fields, replies, usage and its price, errors. Imports no torch."""
