"""What each stage of the pipeline does, as plain functions on tensors and files, with no Ray."""
