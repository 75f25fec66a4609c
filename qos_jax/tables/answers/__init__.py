"""Answer logs: files of prompts and answers in several formats, read as one :class:`log.AnswerLog`."""
