"""Release of a student on the Hub."""
