"""What the README and the page beside the results say: every number from the newest file of its suite."""
