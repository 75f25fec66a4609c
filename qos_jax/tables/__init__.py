"""From logs of prompts and answers to a request table: read, fitted, reported."""
