"""The revisions, one file each: literal statements, in the order of their numbers."""
