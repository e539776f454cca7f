"""Protocol parsers: bytes in, calls and verbs out. No I/O, no clock, no policy."""
