"""Logs of prompts and answers, whatever their layout, as one kind of record."""
