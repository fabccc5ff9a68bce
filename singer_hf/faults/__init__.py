"""What a run does when something goes wrong: losses that are not finite, memory, signals."""
