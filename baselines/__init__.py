"""The methods CompressKV is compared with, one a file: a scorer, an allocator, or both."""
