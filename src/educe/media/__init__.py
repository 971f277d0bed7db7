"""Pictures, video, sound, text, tables and tensors: a stranger's file to arrays, within limits."""
