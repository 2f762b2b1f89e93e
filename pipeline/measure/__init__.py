"""Says how robust a model is, whoever trained it: attacks, checks, and the paper's tables."""
