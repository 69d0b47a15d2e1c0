"""What an optimizer step needs of a Trainer."""
