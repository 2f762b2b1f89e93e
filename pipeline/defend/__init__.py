"""Makes a classifier robust: the plan of a run, and everything up to the trained model."""
