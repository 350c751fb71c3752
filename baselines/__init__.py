"""The methods that CompressKV is compared with, one per file: a scorer, an allocator, or both."""
