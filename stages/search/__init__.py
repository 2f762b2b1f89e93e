"""What a search decides, without Ray, models or files: which settings are tried, and which trials go on."""
