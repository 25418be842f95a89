"""Reading a corpus: files, hub datasets, records, conversations."""
