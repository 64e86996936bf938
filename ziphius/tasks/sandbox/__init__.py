"""A process that judges what a model wrote shuts itself in here, so that a checker that is fooled can do no harm."""
