"""What people may set: values within their ranges, numbers as people write them, and settings files.

A dataclass's field carries its rule and its help in its metadata (``ranges``); the dataclass, the command line and YAML
files (``file``) all hold values to that rule.

Imported by others: arguments, environment, file, indices, ranges, units.
Imports: errors.
"""
