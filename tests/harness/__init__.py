"""What the process tests share: a real server to start, a load to put on it, and eyes in /proc."""
