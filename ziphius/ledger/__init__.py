"""A run's folder as its readers see it: its present stages, and where the time went. No torch."""
