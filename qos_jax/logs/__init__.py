"""From the file that a tool left to requests with times: one registry of layouts."""
