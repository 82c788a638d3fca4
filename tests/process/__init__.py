"""Tests that start real supervisors, workers and exporters; all marked `process`."""
