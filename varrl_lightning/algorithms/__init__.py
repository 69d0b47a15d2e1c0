"""The method as pure functions on tensors: torch only, no models and no Lightning."""
