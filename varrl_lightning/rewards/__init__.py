"""Rewards: what they are, and those that come with the package."""
