"""What the press said of the cost of a model, held to published figures."""
