"""Request tables made from answer logs: read, completed, split, predicted, reported."""
