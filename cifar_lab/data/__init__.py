"""The data sets: where they come from (`datasets`, `sources`, `folder`), and their verified arrays (`cache`)."""
