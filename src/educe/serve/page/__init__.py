"""The page's own files, as they are sent."""
