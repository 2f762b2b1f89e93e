"""Tells what was found: results, a claim, and what the report says."""
