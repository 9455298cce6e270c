"""Files on this machine: durable writes, what a file system can do, digests of contents, image files.

Imported by others: contents, durable, file_system, images.
Imports: errors.
"""
