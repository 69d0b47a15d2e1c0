"""Images to tokens, to latents and back."""
