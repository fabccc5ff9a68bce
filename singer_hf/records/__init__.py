"""What is known of a run: its arguments, the versions behind a figure, and what must not be written down."""
