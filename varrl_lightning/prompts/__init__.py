"""What is asked for: prompt files, benchmarks, batches of any form, and prompt sets that are made or filtered."""
