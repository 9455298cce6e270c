"""What people may set: values within their ranges, numbers as people write them, and settings files."""
