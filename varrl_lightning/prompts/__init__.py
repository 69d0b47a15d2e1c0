"""Prompts: files, benchmarks, batches of any form, and prompt sets that are generated or filtered."""
