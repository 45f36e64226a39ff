"""The only code that streams, resumes and keeps a journal: from a model to a certified artifact."""
